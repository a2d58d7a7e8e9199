"""AppWorld's own interpreter, seen from ours: it imports AppWorld once; slots' servers are forked from there.

    Zygote ──► `envs.appworld.server`, with AppWorld in memory ──fork──► ServerHandle ──► server of one slot

A shard's slots inherit the zygote from the process that they are forked from. It and its servers end when
nobody holds their sockets any more, however their owners died.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from hindsight.envs.base import EnvError
from hindsight.envs.runtime.json_lines import Lines, Lost
from hindsight.envs.runtime.sandbox import missing_for_namespaces

log = logging.getLogger(__name__)

IMPORT = (
    "import sys; sys.path.append({path!r}); from hindsight.envs.appworld.{name} import main; sys.path.pop(); "
)
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
    """The command that calls `envs.appworld.NAME.main` in another interpreter, without our settings."""
    # Not resolved: in a clone `hindsight/envs` is a link, and its target is in no package.
    path = str(Path(__file__).absolute().parents[3])
    return [str(python), "-I", "-c", BOOT.format(path=path, name=name, arguments=arguments)]


class Zygote:
    """A process that has imported AppWorld, for servers to be forked from: some seconds and 300 MB, once."""

    def __init__(self, python: Path, root: Path) -> None:
        """
        Args:
            python: AppWorld's interpreter.
            root: the folder with AppWorld's `data`.
        """
        self.root = root
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                program(python, "server", theirs.fileno(), str(root.resolve())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # when our group is killed the servers see us gone, and tidy up
                env=VARIABLES,
            )
        self._process = _Process(self._popen.pid)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._process.ended(0.0)

    def fork(self, seconds: float) -> tuple[Lines, int]:
        """A new server and its pid; it answers once AppWorld is imported.

        Raises:
            Lost: the zygote is dead, or was silent for `seconds` and has been killed.
        """
        ours, theirs = socket.socketpair()
        lines = Lines(ours)
        try:
            with theirs:
                socket.send_fds(self._requests, [b"f"], [theirs.fileno()])
            return lines, lines.receive(seconds)
        except (OSError, Lost) as error:
            lines.close()
            self._process.kill()  # of no use to anyone, whatever ails it
            raise Lost(f"no server could be forked: {error}") from error


class _Process:
    """A process that may not be our child, held by a descriptor: its number may pass to another."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = -1

    def ended(self, patience: float) -> bool:
        """Whether it has ended, or does within `patience` seconds."""
        return self._descriptor < 0 or bool(select.select([self._descriptor], [], [], patience)[0])

    def kill(self) -> None:
        if not self.ended(0.0):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            self.ended(5.0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


_ZYGOTES: dict[tuple[Path, Path], Zygote] = {}


def zygote(python: Path, root: Path) -> Zygote:
    """This process's zygote, another where it has died; processes forked from this one use it too."""
    found = _ZYGOTES.get((python, root))
    if found is None or not found.alive:
        if found:
            log.warning("AppWorld's zygote has died: starting another")
        found = _ZYGOTES[python, root] = Zygote(python, root)
    return found


def refused(mode: str, reason: str) -> str:
    """What to tell a user whose machine cannot isolate agents' code as env.sandbox asks."""
    advice = {
        "namespaces": f"{missing_for_namespaces()}; or, for a weaker isolation (docs/reliability.md), set "
        "env.sandbox=limits",
        "limits": "run on a kernel with Landlock (5.13), or as root with HINDSIGHT_CACHE and Python where "
        "everybody may read them",
    }
    where = socket.gethostname()
    return f"env.sandbox = {mode} cannot be had on {where}: {reason}. To have it, {advice[mode]}"


class ServerHandle:
    """The server of one slot."""

    def __init__(self, zygote: Zygote, settings: dict[str, Any], seconds: float) -> None:
        """
        Args:
            settings: as `envs.appworld.server.Server` has them, but for the folder.
            seconds: that it may take to get ready.

        Raises:
            Lost, EnvError: it does not get ready, or the agent's code cannot be isolated as asked.
        """
        until = time.monotonic() + seconds
        self.lines, self.pid = zygote.fork(seconds)
        self._process = _Process(self.pid)
        self.folder = Path(tempfile.mkdtemp(prefix="hindsight-appworld-"))  # the server removes it, or we do
        try:
            self.lines.send({**settings, "folder": str(self.folder)})
            told = self.call("hello", seconds=until - time.monotonic())
            if told["refused"]:
                raise EnvError(refused(settings["mode"], told["refused"]))
        except (Lost, EnvError):
            self.end()
            raise

    def call(self, method: str, *args: Any, seconds: float) -> Any:
        """Its answer to a request.

        Raises:
            EnvError: it answered with an error.
            Lost: it died, hung or sent garbage, and cannot be used again.
        """
        self.lines.send([method, *args])
        answer = self.lines.receive(seconds)
        if not isinstance(answer, dict) or not answer.keys() & {"value", "error"}:
            raise Lost("it answered no answer")
        if "error" in answer:
            raise EnvError(f"AppWorld's server could not {method}: {answer['error']}")
        return answer["value"]

    def end(self, patience: float = 0.0) -> None:
        """Ensure that it and its children are gone; kill it after `patience` seconds."""
        self.lines.close()
        if not self._process.ended(patience):
            self._process.kill()
        self._process.close()
        shutil.rmtree(self.folder, ignore_errors=True)
