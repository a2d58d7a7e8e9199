"""How processes pass sockets, and how they talk to another interpreter: JSON messages, one per line."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 64 << 20  # bytes of one message; a longer one is treated as garbage
PULSE = 0.1  # seconds between two calls of what a receiver does meanwhile


class Lost(ConnectionError):
    """The other side is gone, silent beyond the deadline, or talks garbage."""


class Abandoned(ConnectionError):
    """The watched side closed its socket: nobody waits for the answer."""


def readable(*channels: Lines) -> Lines:
    """Wait until one of the channels has something to read; return the first that has."""
    ready = [channel.socket for channel in channels if channel.buffered]
    ready = ready or select.select([channel.socket for channel in channels], [], [])[0]
    return next(channel for channel in channels if channel.socket in ready)


def channels(requests: socket.socket) -> Iterator[socket.socket]:
    """The sockets that are passed over `requests`, until its other end is closed."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
        if not message:
            return
        yield socket.socket(fileno=descriptors[0])


class Lines:
    """One end of a socket over which messages travel."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._read = bytearray()

    def send(self, message: Any) -> None:
        """Raises Lost if the other side is gone."""
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Lost(f"it cannot be written to: {error}") from error

    @property
    def buffered(self) -> bool:
        """Whether a whole message has been read but not received yet."""
        return b"\n" in self._read

    def receive(
        self,
        seconds: float | None = None,
        watch: Lines | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        """The next message.

        Args:
            seconds: how long to wait at most.
            watch: another channel, which is expected to stay open and silent.
            meanwhile: called every PULSE seconds of a wait with a limit.

        Raises:
            Lost: it ended, said nothing readable, or nothing within `seconds`.
            Abandoned: `watch` hung up.
        """
        until = None if seconds is None else time.monotonic() + seconds
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            ends = [self.socket] + ([watch.socket] if watch else [])
            left = None if until is None else max(0.0, until - time.monotonic())
            pause = left if left is None or meanwhile is None else min(left, PULSE)
            ready, _, _ = select.select(ends, [], [], pause)
            if not ready and pause == left:
                raise Lost(f"it did not answer within {seconds:g} s")
            if meanwhile:
                meanwhile()
            if watch and watch.socket in ready and not _recv(watch.socket, 1, socket.MSG_PEEK):
                raise Abandoned
            if self.socket in ready:
                self._fill()
        line, self._read = bytes(self._read[:end]), self._read[end + 1 :]
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Lost(f"its answer is not JSON: {error}") from error

    def close(self) -> None:
        """Close the channel; the other end then receives `Lost`."""
        self.socket.close()

    def _fill(self) -> None:
        data = _recv(self.socket, 1 << 16, 0)
        if not data:
            raise Lost("it ended")
        self._read += data
        if len(self._read) > LONGEST:
            raise Lost(f"it answered more than {LONGEST >> 20} MiB")


def _recv(sock: socket.socket, count: int, flags: int) -> bytes:
    """The bytes that can be read; none if the other side is gone."""
    try:
        return sock.recv(count, flags)
    except ConnectionError:
        return b""
