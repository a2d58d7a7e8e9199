"""AppWorld's side of `envs.appworld.env`: what runs in AppWorld's own interpreter.

    zygote ──fork──► server of one slot ──fork──► world: upstream's AppWorld, isolated (`envs.appworld.world`)
                                         ──fork──► judge: upstream's evaluator, isolated too

Nothing listens anywhere: zygote and server inherit one end of a socket pair each, and end when the other
end closes. The zygote imports AppWorld once and stays as it is, a server never runs an agent's code, and
every episode gets a world forked from it, so that nothing that an agent's code did to its interpreter
outlives the episode. A world sees its own task without the ground truth, and stands still between two
actions. When the episode ends, its databases go to a judge, which sees the ground truth and never ran the
agent's code. They are SQL statements that the agent's code has caused, so the judge is isolated too.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from appworld import update_root
from appworld.apps import get_all_apps
from appworld.collections.api_docs import ApiDocCollection
from appworld.common.utils import import_apis_module, import_models_module

from hindsight.envs.appworld.world import FAILED, answer_message, be_judge, be_world
from hindsight.envs.runtime.json_lines import Lines, Lost, channels
from hindsight.envs.runtime.sandbox import Child, Mode, Permissions, refusal, spawn

TASK = re.compile(r"[A-Za-z0-9-]+_[0-9]+")
GRACE = 1.5  # times the limit on code after which a world that does not stop itself is killed


class Server:
    """Plays one episode at a time for the environment at the other end of `lines`."""

    def __init__(self, lines: Lines, root: Path, settings: dict[str, Any]) -> None:
        """
        Args:
            root: the folder with AppWorld's `data`.
            settings: an empty "folder" for the server alone, "seconds" that one piece of code may take, "cpu"
                seconds of a whole episode, "patience" in seconds with a world or judge that starts, and
                "mode" of isolation.
        """
        self._lines = lines
        self._folder = Path(settings["folder"])
        self._root = root
        self._seconds: int = settings["seconds"]
        self._cpu: int = settings["cpu"]
        self._patience: float = settings["patience"]
        self._mode: Mode = settings["mode"]
        self._world: Child | None = None
        self._task = ""

    def serve(self) -> None:
        """Answer requests until the other end hangs up."""
        methods: dict[str, Callable[..., Any]] = {
            method.__name__: method for method in (self.hello, self.reset, self.execute, self.evaluate)
        }
        while True:
            method, *args = self._lines.receive()
            self._lines.send(answer_message(methods[method], *args))

    def hello(self) -> dict[str, Any]:
        """Try the isolation once: "refused" says why it cannot be had."""
        permissions = Permissions(self._folder, {"data": self._root / "data"})
        return {"pid": os.getpid(), "refused": refusal(self._mode, permissions)}

    def reset(self, task: str) -> dict[str, Any]:
        """Start an episode in a new world."""
        self.drop()
        if not TASK.fullmatch(task):
            raise ValueError(f"{task!r} is no task's name")
        self._task = task
        self._world = self._spawn(["specs.json", "dbs"], lambda lines: be_world(lines, task, self._seconds))
        begun = self._say(self._world, None, self._patience)
        self._world.settle()
        return begun

    def execute(self, code: str) -> dict[str, Any]:
        """The code's output and whether the task is completed, or why the code has ended its own world."""
        if self._world is None:
            raise RuntimeError("no world is there: reset first")
        try:
            return self._act(self._world, ["execute", code])
        except (Lost, RuntimeError) as error:
            self.drop()
            return {
                "output": f"{FAILED}The session has ended: {error}.",
                "completed": False,
                "lost": str(error),
            }

    def evaluate(self) -> dict[str, Any]:
        """The verdict, or why the agent's code has left a world that has none; the world is gone with it."""
        if self._world is None:
            raise RuntimeError("no world is there: reset first")
        task = self._task
        try:
            databases = self._act(self._world, ["saved"])
        except (Lost, RuntimeError) as error:  # the agent caused it: not an infrastructure failure
            return {"lost": f"its databases were not saved: {error}"}
        finally:
            self.drop()
        child = self._spawn(
            ["specs.json", "dbs", "ground_truth"], lambda lines: be_judge(lines, task, databases)
        )
        try:
            return self._say(child, None, self._patience)
        except (Lost, RuntimeError) as error:  # what it judges is the agent's as well
            return {"lost": f"its databases cannot be judged: {error}"}
        finally:
            child.kill()

    def drop(self) -> None:
        """End the episode's world, if there is one."""
        if self._world is not None:
            self._world.kill()
            self._world = None

    def _spawn(self, names: list[str], work: Callable[[Lines], None]) -> Child:
        folder = Path("data/tasks") / self._task
        paths = ["data/api_docs", "data/base_dbs", *(str(folder / name) for name in names)]
        permissions = Permissions(self._folder, {path: self._root / path for path in paths}, cpu=self._cpu)
        return spawn(self._mode, permissions, work)

    def _act(self, world: Child, request: list[str]) -> Any:
        """The world's answer, with which all that the agent's code has started ends. Raises as `_say`."""
        world.thaw()
        reply = self._say(world, request, GRACE * self._seconds)
        world.freeze()
        return reply

    def _say(self, child: Child, request: Any, seconds: float) -> Any:
        """A child's answer to a request; None asks nothing, and only waits.

        Raises:
            Lost: the child ended, hangs, answers garbage, or holds too much memory.
            RuntimeError: it answered with an error.
            OSError: the child could not be isolated.
        """
        if request is not None:
            child.lines.send(request)
        reply = child.lines.receive(seconds, watch=self._lines, meanwhile=child.bound)
        if isinstance(reply, str):
            raise OSError(reply)
        if not isinstance(reply, dict) or "value" not in reply:
            raise RuntimeError(reply.get("error", "") if isinstance(reply, dict) else str(reply))
        return reply["value"]


def _load(root: Path) -> None:
    """Import all of AppWorld that worlds and judges need, and keep it shared with what is forked."""
    update_root(str(root))
    ApiDocCollection.load(load_apps=tuple(get_all_apps(skip_admin=True)), include_response_schemas=True)
    for app in get_all_apps():
        import_models_module(app)
        import_apis_module(app)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, the shared pages


def _serve(channel: socket.socket, root: Path) -> None:
    """Be a slot's server; the first message holds the settings."""
    lines = Lines(channel)
    with suppress(Lost):  # nobody is there any more; the kernel ends the world with this process
        settings = lines.receive()
        server = Server(lines, root, settings)
        try:
            server.serve()
        finally:
            server.drop()
            shutil.rmtree(settings["folder"], ignore_errors=True)


def main(requests_fd: int, root: str) -> None:
    """Load AppWorld, then fork a server for every descriptor that comes over the socket `requests_fd`, until
    nobody is left who could send one."""
    _load(Path(root))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with socket.socket(fileno=requests_fd) as requests:
        for channel in channels(requests):
            if (pid := os.fork()) == 0:
                requests.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a server waits for its worlds
                status = 1
                try:
                    _serve(channel, Path(root))
                    status = 0
                finally:
                    if status:
                        traceback.print_exc()  # nobody else does: the next line ends the process
                    os._exit(status)
            with channel, suppress(Lost):
                Lines(channel).send(pid)
