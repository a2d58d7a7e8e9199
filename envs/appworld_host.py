"""AppWorld's own interpreter, seen from ours: it imports AppWorld once; slots' servers are forked from there.

    Nursery ──► `envs.appworld_server`, with AppWorld in memory ──fork──► ServerHandle ──► server of one slot

A shard's slots inherit the nursery from the process that they are forked from. It and its servers end when
nobody holds their sockets any more, however their owners died.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from envs.base import EnvError
from envs.lines import Lines, Lost

log = logging.getLogger(__name__)

IMPORT = "import sys; sys.path.append({path!r}); from envs.{name} import main; sys.path.pop(); "
BOOT = IMPORT + "main(*{arguments!r})"
# All of them: agents must not find their owner's keys. python-dotenv would read the .env of a project around.
VARIABLES = {
    "PATH": "/usr/bin:/bin",
    "HOME": ".",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHON_DOTENV_DISABLED": "1",
}


def program(python: Path, name: str, *arguments: str | int) -> list[str]:
    """The command that calls `envs.NAME.main` in another interpreter, without our settings."""
    path = str(Path(__file__).resolve().parent.parent)
    return [str(python), "-I", "-c", BOOT.format(path=path, name=name, arguments=arguments)]


class Nursery:
    """A process that has imported AppWorld, for servers to be forked from: some seconds and 300 MB, once."""

    def __init__(self, python: Path, root: Path) -> None:
        """
        Args:
            python: AppWorld's interpreter.
            root: the folder that holds AppWorld's `data`.
        """
        self.root = root
        self._python = python
        self._start()

    def fork(self) -> Lines:
        """A new server, which answers once AppWorld is imported. A nursery that has died is replaced."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._requests, [b"f"], [theirs.fileno()])
            except ConnectionError as error:
                log.warning("AppWorld's nursery has died (%s): starting another", error)
                self._requests.close()
                self._start()
                socket.send_fds(self._requests, [b"f"], [theirs.fileno()])
        return Lines(ours)

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                program(self._python, "appworld_server", theirs.fileno(), str(self.root.resolve())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # when our group is killed the servers see us gone, and tidy up
                env=VARIABLES,
            )


@functools.cache
def nursery(python: Path, root: Path) -> Nursery:
    """This process's nursery; processes forked from this one use it too."""
    return Nursery(python, root)


class ServerHandle:
    """The server of one slot; `mode` tells how it shuts the agent's code in (`envs.sandbox`)."""

    def __init__(self, nursery: Nursery, settings: dict[str, Any], seconds: float) -> None:
        """
        Args:
            settings: as `envs.appworld_server.Server` has them, but for the folder.
            seconds: that it may take to get ready.

        Raises:
            Lost, EnvError: it does not get ready.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="hindsight-appworld-"))  # the server removes it, or we do
        self.lines = nursery.fork()
        try:
            self.lines.send({**settings, "folder": str(self.folder)})
            told = self.call("hello", seconds=seconds)
            self.pid: int = told["pid"]
            self._process = os.pidfd_open(self.pid)  # no child of ours: its number may pass to another
        except (Lost, EnvError):
            self.lines.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.mode: str = told["mode"]
        for mode, reason in told["weaker"].items():
            text = "AppWorld: the agent's code is not shut in by %r here (%s), but by %r"
            log.warning(text, mode, reason, self.mode)

    def call(self, method: str, *args: Any, seconds: float) -> Any:
        """What it answers to a request.

        Raises:
            EnvError: it answered with an error.
            Lost: it died, hangs or talks garbage; it is of no use any more.
        """
        self.lines.send([method, *args])
        answer = self.lines.receive(seconds)
        if not isinstance(answer, dict) or not answer.keys() & {"value", "error"}:
            raise Lost("it answered no answer")
        if "error" in answer:
            raise EnvError(f"AppWorld's server could not {method}: {answer['error']}")
        return answer["value"]

    def end(self, patience: float = 0.0) -> None:
        """See to it that it and all its children are gone; kill it after `patience` seconds."""
        self.lines.close()
        if not self._ended(patience):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            self._ended(patience=5.0)
        os.close(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ended(self, patience: float) -> bool:
        return bool(select.select([self._process], [], [], patience)[0])
