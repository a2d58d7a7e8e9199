"""The child side of a slot: a server that imports the environment once and forks a process for every slot.

The forked processes share what was imported (copy on write), so one costs milliseconds and little memory.
`multiprocessing`'s own forkserver is not used: it runs the owner's `__main__` again in every child (inside a
Ray actor that is Ray itself), and a hung child keeps it alive after its owner has died.

Lifetimes: the owner holds the other end of the server's socket. When the owner dies, however it dies, the
socket ends, the server returns, and the kernel kills every slot (PR_SET_PDEATHSIG), also one that hangs.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from io import BufferedIOBase
from typing import Any, NoReturn

from hindsight.envs.base import BadAnswer, DataMissing, EnvError, EnvFamily, InstanceLost, NoDemonstration
from hindsight.envs.boundary import Checked, described
from hindsight.envs.runtime.json_lines import channels
from hindsight.envs.runtime.linux import die_with_parent

LENGTH = struct.Struct("!I")  # every message is its length in bytes, then its pickle
# EnvError subclasses that callers handle; all others are sent as plain EnvError.
TOLD = (BadAnswer, DataMissing, InstanceLost, NoDemonstration)


def frame_message(message: Any) -> bytes:
    """One message as it travels between a slot and its owner."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


def _read(stream: BufferedIOBase) -> Any:
    """The next message. Raises EOFError when the owner closed the channel."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(LENGTH.unpack(head)[0]))


def _packed(function: Callable[..., Any], *args: Any) -> bytes:
    """The message (None, what `function` returns).

    Raises EnvError: InstanceLost if it raised anything else, since the state it left is unknown.
    """
    try:
        return frame_message((None, function(*args)))
    except EnvError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise InstanceLost(f"{type(error).__name__}: {described(error)}") from error


def _answer(function: Callable[..., Any], *args: Any) -> tuple[bytes, bool]:
    """Call `function`; return the owner's message, (None, value) or (kind of EnvError, description), and
    whether the instance can still be used."""
    try:
        return _packed(function, *args), True
    except EnvError as error:
        kind = next((kind for kind in TOLD if isinstance(error, kind)), EnvError)
        return frame_message((kind, described(error))), kind is not InstanceLost


def _serve(channel: socket.socket, family: EnvFamily | None, failure: bytes, server: int) -> NoReturn:
    """Be a slot: announce the pid, make the instance, then answer (method, args) until the channel ends.

    Args:
        channel: to the owner.
        family: makes the environment instance; None if it could not be loaded.
        failure: the message that says why; the slot sends it and ends.
        server: pid of the process this one was forked from.
    """
    os.setsid()  # a group of its own, so that a kill takes along what the environment started
    die_with_parent(server)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with channel.makefile("rwb") as stream:

        def send(message: bytes) -> None:
            stream.write(message)
            stream.flush()

        try:
            send(frame_message(os.getpid()))
            hosted: list[Checked] = []  # the one instance, kept here: it cannot travel
            message, useful = (
                _answer(lambda: hosted.append(Checked(family.make(), family.name)))
                if family
                else (failure, False)
            )
            send(message)
            while useful:
                method, args = _read(stream)
                message, useful = _answer(hosted[0].call, method, *args)
                send(message)
            os._exit(0)
        except (EOFError, ConnectionError):
            os._exit(0)  # the owner gave up the slot; the server's state must not be torn down here
        finally:  # nor if the environment ends its process, as by sys.exit
            traceback.print_exc()
            os._exit(1)


def _load(family_fd: int) -> EnvFamily:
    """The family whose pickle is in this file, preloaded."""
    with open(family_fd, "rb") as file:
        file.seek(0)  # the offset is shared with the owner and with earlier servers
        family: EnvFamily = pickle.load(file)
    family.preload()
    return family


def main(requests_fd: int, family_fd: int) -> None:
    """Fork a slot for every descriptor that comes over the socket `requests_fd`, until the owner closes it.

    Args:
        family_fd: a file that holds the pickled EnvFamily.
    """
    os.dup2(2, 1)  # an environment's prints are diagnostics
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    loaded: list[EnvFamily] = []  # empty if loading fails, which every slot then reports
    message, _ = _answer(lambda: loaded.append(_load(family_fd)))
    family = loaded[0] if loaded else None
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the shared pages
    server = os.getpid()
    with socket.socket(fileno=requests_fd) as requests:
        for channel in channels(requests):
            if family:
                family.refresh()
            if os.fork() == 0:
                requests.close()
                _serve(channel, family, message, server)
            channel.close()
