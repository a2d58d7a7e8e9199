"""An environment slot: one process that hosts one episode at a time and can be killed at any moment.

    Forkserver ──fork──► Slot ──call("step", action)──► the process's TextEnv

A slot answers within its deadline or is killed. A process that dies or hangs raises an error, never a reward.
So does an exception inside the environment; if it is not an EnvError, the process ends as well.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hindsight.configs.environ import present_variables, public
from hindsight.envs.base import EnvError, EnvFamily, InstanceLost, SlotDied, SlotTimeout
from hindsight.envs.runtime.forkserver import LENGTH, frame_message
from hindsight.envs.runtime.linux import resident, rollup

IMPORT = "import sys; sys.path[:] = {path!r}; from hindsight.envs.runtime.forkserver import main; "
BOOT = IMPORT + "main({requests}, {family})"


class Forkserver:
    """The process that slots are forked from; started on first use, and again after it died."""

    def __init__(self, family: EnvFamily, secrets: Mapping[str, str] | None = None) -> None:
        """
        Args:
            secrets: values of `family.secrets` that this process lacks.
        """
        self._secrets = {**present_variables(family.secrets), **(secrets or {})}
        # Not a pipe: a large family would fill one and block.
        self._family = tempfile.TemporaryFile()  # noqa: SIM115 - kept for servers to come
        pickle.dump(family, self._family)
        self._family.flush()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, if it was started."""
        return self._process.pid if self._process else None

    def fork(self, channel: socket.socket) -> None:
        """Request a new slot that talks over `channel`, without waiting for it."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._requests is not None
        try:
            socket.send_fds(self._requests, [b"f"], [channel.fileno()])
        except ConnectionError as error:
            raise SlotDied(f"the forkserver died while a slot was asked of it: {error}") from error

    def _start(self) -> None:
        if self._requests:
            self._requests.close()
        self._requests, theirs = socket.socketpair()
        path = [folder or os.getcwd() for folder in sys.path]  # not PYTHONPATH: environments would inherit it
        descriptors = theirs.fileno(), self._family.fileno()
        code = BOOT.format(path=path, requests=descriptors[0], family=descriptors[1])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the owner
                # Many slots share the cores.
                env={**public(os.environ), "OMP_NUM_THREADS": "1", **self._secrets},
            )

    def close(self) -> None:
        """End the server, and with it every slot forked from it."""
        if self._requests:
            self._requests.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        self._family.close()


class Slot:
    """The owner's end of one slot, for the event loop that started it and one call at a time."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.busy = False
        self._reader = reader
        self._writer = writer
        self.killed = False  # by its owner, rather than dead by itself or from outside
        self._ended = False

    @classmethod
    async def start(cls, server: Forkserver, deadline: float) -> Slot:
        """Fork a process and make its environment instance, within `deadline` seconds.

        Raises:
            SlotTimeout, SlotDied: the process did not become ready.
            EnvError: the family's `make` raised.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            server.fork(theirs)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        slot = cls(0, reader, writer)
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        slot.pid = await slot._exchange(b"", deadline, "start")
        try:
            await slot._result(b"", until - loop.time(), "make")
        except EnvError:
            slot.kill()
            raise
        return slot

    @property
    def alive(self) -> bool:
        """Whether the process can still be called, as far as the event loop has seen."""
        return not self._ended and not self._reader.at_eof()

    @property
    def rss(self) -> int:
        """Resident bytes, pages shared with the forkserver included; 0 if it is gone."""
        return resident(self.pid)

    @property
    def private(self) -> int:
        """Resident bytes that it shares with no other process; 0 if it is gone."""
        return rollup(self.pid, "Private_")

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """`env.method(*args)` in the process, within `deadline` seconds.

        Raises:
            SlotTimeout: it did not answer in time; the process has been killed.
            SlotDied: the process ended before it answered.
            EnvError, or a kind in `forkserver.TOLD`: the environment raised it; the slot can be used again.
            InstanceLost: the environment raised it or an unexpected exception; the process has ended.
        """
        return await self._result(frame_message((method, args)), deadline, method)

    async def _result(self, request: bytes, deadline: float, method: str) -> Any:
        error, value = await self._exchange(request, deadline, method)
        if error is InstanceLost:
            self.reap()
        if error:
            raise error(f"{method}: {value}")
        return value

    async def _exchange(self, request: bytes, deadline: float, method: str) -> Any:
        """Send `request` and read one message; an interruption kills the process."""
        if self.busy:
            raise RuntimeError(f"{method} was called on a slot that is answering another call")
        self.busy = True
        try:
            async with asyncio.timeout(deadline):
                self._writer.write(request)
                await self._writer.drain()
                head = await self._reader.readexactly(LENGTH.size)
                body = await self._reader.readexactly(LENGTH.unpack(head)[0])
        except TimeoutError:
            self.kill()
            raise SlotTimeout(f"{method} took over {deadline:g} s; process {self.pid} was killed") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            self.reap()
            raise SlotDied(f"process {self.pid} ended before it answered {method}") from None
        except asyncio.CancelledError:
            self.kill()  # otherwise its late answer would be read as the next call's
            raise
        finally:
            self.busy = False
        try:
            return pickle.loads(body)
        except (pickle.UnpicklingError, AttributeError, ImportError) as error:
            raise EnvError(f"{method} returned a value that cannot be unpickled here: {error}") from error

    def kill(self) -> None:
        """Kill the process and its children; a running call raises SlotDied."""
        self.killed = self.killed or self.alive
        self.reap()

    def reap(self) -> None:
        """Remove the remains of the process, including its children."""
        if self._ended:
            return
        self._ended = True
        if self.pid:  # 0: it has not said its pid yet, and ends by itself when it finds the channel closed
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._writer.transport.abort()
