"""AppWorld's side of `envs.appworld.env`: what runs in AppWorld's own interpreter.

    zygote ──fork──► server of one slot ──fork──► world: upstream's AppWorld and the agent's code, isolated
                                         ──fork──► judge: upstream's evaluator, isolated too

Nothing listens anywhere: zygote and server inherit one end of a socket pair each, and end when the other
end closes. The zygote imports AppWorld once and stays as it is, a server never runs an agent's code, and
every episode gets a world forked from it, so that nothing that an agent's code did to its interpreter
outlives the episode. A world sees its own task without the ground truth. When the episode ends, the
databases that upstream has saved go to a judge, which sees the ground truth and never ran the agent's code.
They are SQL statements from a world that is not trusted, so the judge is isolated too.
"""

from __future__ import annotations

import ast
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

from appworld import AppWorld, update_root
from appworld.apps import get_all_apps
from appworld.collections.api_docs import ApiDocCollection
from appworld.common.utils import import_apis_module, import_models_module
from appworld.evaluator import evaluate_task

from hindsight.envs.runtime.json_lines import Lines, Lost, channels
from hindsight.envs.runtime.sandbox import Child, Permissions, clear, spawn, strongest

TASK = re.compile(r"[A-Za-z0-9-]+_[0-9]+")
RUN = "episode"  # upstream's name of an experiment
SAVED = Path("experiments/outputs") / RUN / "tasks"
LONGEST = 20_000  # characters of one output; the middle of a longer one is left out
GRACE = 1.5  # times the limit on code after which a world that does not stop itself is killed
FAILED = "Execution failed. Traceback:\n"  # as upstream begins


class World:
    """Upstream's environment, in the child that runs the agent's code."""

    def __init__(self, task: str, seconds: int) -> None:
        update_root(os.getcwd())
        self._world = AppWorld(task, RUN, load_ground_truth=False, timeout_seconds=seconds)

    def begin(self) -> dict[str, Any]:
        """The task, as the agent's prompt states it."""
        task = self._world.task
        return {
            "instruction": task.instruction,
            "supervisor": {
                key: str(task.supervisor[key]) for key in ("first_name", "last_name", "email", "phone_number")
            },
            "datetime": task.datetime.isoformat(" "),
            "apps": task.app_descriptions,
        }

    def execute(self, code: str) -> dict[str, Any]:
        """Run the agent's code; its output, and whether it has completed the task."""
        return {"output": shorten(self._run(code)), "completed": bool(self._world.task_completed())}

    def saved(self) -> dict[str, str]:
        """The databases' changes, by file name."""
        folder = SAVED / self._world.task_id / "dbs"
        return {path.name: path.read_text() for path in folder.iterdir()}

    def _run(self, code: str) -> str:
        try:
            ast.parse(code)
        except SyntaxError:
            pass  # upstream says it well
        except (ValueError, RecursionError, MemoryError) as error:  # and does not expect these
            return f"{FAILED}{type(error).__name__}: {error}"
        output, raised = attempt(self._world.execute, code)
        if raised:  # by the agent's code: its observation
            self._world.safety_guard.disable()
            return FAILED + "".join(traceback.format_exception_only(raised)).strip()
        return str(output)


def shorten(text: str) -> str:
    """Cut the middle of a text that is longer than LONGEST characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def judge(task: str, databases: dict[str, str]) -> dict[str, Any]:
    """Upstream's verdict on a task's final databases."""
    update_root(os.getcwd())
    folder = SAVED / task / "dbs"
    folder.mkdir(parents=True)
    for name, content in databases.items():
        (folder / Path(name).name).write_text(content)
    return evaluate_task(task, RUN, save_report=False).to_dict()


def attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """What `function` returns, or what it raised: data, as agents' code may raise anything (SystemExit too)
    and upstream raises plain Exceptions."""
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001 - see above
        return None, error


def answer(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call `function`; the message that tells what came of it."""
    value, error = attempt(function, *args)
    return {"error": f"{type(error).__name__}: {error}"} if error else {"value": value}


class Server:
    """Plays one episode at a time for the environment at the other end of `lines`."""

    def __init__(self, lines: Lines, root: Path, settings: dict[str, Any]) -> None:
        """
        Args:
            root: the folder that holds AppWorld's `data`.
            settings: an empty "folder" for the server alone, "seconds" that one piece of code may take, "cpu"
                seconds of a whole episode, "patience" in seconds with a world or judge that starts, and
                "mode" of isolation, empty for the strongest that works here.
        """
        self._lines = lines
        self._folder = Path(settings["folder"])
        self._root = root
        self._seconds: int = settings["seconds"]
        self._cpu: int = settings["cpu"]
        self._patience: float = settings["patience"]
        self._mode: str = settings["mode"]
        self._weaker: dict[str, str] = {}
        self._world: Child | None = None
        self._task = ""

    def serve(self) -> None:
        """Answer requests until the other end hangs up."""
        methods: dict[str, Callable[..., Any]] = {
            method.__name__: method for method in (self.hello, self.reset, self.execute, self.evaluate)
        }
        while True:
            method, *args = self._lines.receive()
            self._lines.send(answer(methods[method], *args))

    def hello(self) -> dict[str, Any]:
        """Try the isolation modes once; return the one in use, and why stronger ones fail."""
        if not self._mode:
            self._mode, self._weaker = strongest(Permissions(self._folder, {}))
        return {"pid": os.getpid(), "mode": self._mode, "weaker": self._weaker}

    def reset(self, task: str) -> dict[str, Any]:
        """Start an episode in a new world."""
        self.drop()
        if not TASK.fullmatch(task):
            raise ValueError(f"{task!r} is no task's name")
        self._task = task
        self._world = self._spawn(["specs.json", "dbs"], lambda lines: _play(lines, task, self._seconds))
        return self._say(self._world, "begin", self._patience)

    def execute(self, code: str) -> dict[str, Any]:
        """The code's output and whether the task is completed, or why the code has ended its own world."""
        if self._world is None:
            raise RuntimeError("no world is there: reset first")
        try:
            return self._say(self._world, ["execute", code], GRACE * self._seconds)
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
            databases = self._say(self._world, "saved", GRACE * self._seconds)
        except (Lost, RuntimeError) as error:  # the agent caused it: not an infrastructure failure
            return {"lost": f"its databases were not saved: {error}"}
        finally:
            self.drop()
        child = self._spawn(
            ["specs.json", "dbs", "ground_truth"], lambda lines: _judge(lines, task, databases)
        )
        try:
            return self._say(child, None, self._patience)
        except (Lost, RuntimeError) as error:  # what it judges is the agent's as well
            return {"lost": f"its databases cannot be judged: {error}"}
        finally:
            child.kill()
            clear(self._folder)

    def drop(self) -> None:
        """End the episode's world, if there is one."""
        if self._world is not None:
            self._world.kill()
            self._world = None
            clear(self._folder)

    def _spawn(self, names: list[str], work: Callable[[Lines], None]) -> Child:
        folder = Path("data/tasks") / self._task
        paths = ["data/api_docs", "data/base_dbs", *(str(folder / name) for name in names)]
        permissions = Permissions(self._folder, {path: self._root / path for path in paths}, cpu=self._cpu)
        return spawn(self._mode, permissions, work)

    def _say(self, child: Child, request: Any, seconds: float) -> Any:
        """A child's answer to a request; None asks nothing, and only waits.

        Raises:
            Lost: the child ended, hangs, or answers garbage.
            RuntimeError: it answered with an error.
            OSError: the child could not be isolated.
        """
        if request is not None:
            child.lines.send(request)
        reply = child.lines.receive(seconds, watch=self._lines)
        if isinstance(reply, str):
            raise OSError(reply)
        if not isinstance(reply, dict) or "value" not in reply:
            raise RuntimeError(reply.get("error", "") if isinstance(reply, dict) else str(reply))
        return reply["value"]


def _play(lines: Lines, task: str, seconds: int) -> None:
    """Be a world."""
    made: list[World] = []

    def begin() -> dict[str, Any]:
        made.append(World(task, seconds))
        return made[0].begin()

    lines.receive()
    lines.send(answer(begin))
    while True:
        request = lines.receive()
        if request == "saved":
            lines.send(answer(made[0].saved))
        else:
            lines.send(answer(made[0].execute, request[1]))


def _judge(lines: Lines, task: str, databases: dict[str, str]) -> None:
    lines.send(answer(judge, task, databases))
    lines.receive()  # until it is killed


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
        try:
            Server(lines, root, settings).serve()
        finally:
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
