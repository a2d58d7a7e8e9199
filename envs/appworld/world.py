"""One episode of upstream's AppWorld, in two processes: the apps with their databases, and the agent's code.

    server ──requests──► apps ──code──► coder: upstream's shell, forked from the apps
                          ▲                │
                          └──HTTP──────────┘

Whether the task is completed and what the databases hold is the apps' word. The coder has two descriptors,
both sockets to the apps: what goes over them is a call of an API or the output of its own code, whoever
writes it. The apps are hidden from it as far as processes of one user can be.
"""

from __future__ import annotations

import ast
import itertools
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import httpx
from appworld import AppWorld, update_root
from appworld.evaluator import evaluate_task

from hindsight.envs.runtime.json_lines import Lines, Lost, readable
from hindsight.envs.runtime.linux import adopt_orphans, die_with_parent, hide_memory

RUN = "episode"  # upstream's name of an experiment
SAVED = Path("experiments/outputs") / RUN / "tasks"
LONGEST = 20_000  # characters of one output; the middle of a longer one is left out
MARK = 100  # characters that say so, at most
DESCRIPTORS = 256  # more than a child may have
FAILED = "Execution failed. Traceback:\n"  # as upstream begins
PRIVATE = ("admin",)  # apps that upstream's APIs use and agents may not


class TaskWorld:
    """Upstream's environment: its apps here, its shell in a process of its own."""

    def __init__(self, task: str, seconds: int) -> None:
        """
        Args:
            seconds: that one piece of code may take.
        """
        update_root(os.getcwd())
        self._world = world = AppWorld(task, RUN, load_ground_truth=False, timeout_seconds=seconds)
        self._open = set(world.requester.apps) - {*PRIVATE}
        self._transport = world.requester.client._transport
        self._coder, coders_end = map(Lines, socket.socketpair())
        self._calls, callers_end = map(Lines, socket.socketpair())
        hide_memory(True)
        adopt_orphans()
        ours = os.getpid()
        if os.fork() == 0:
            _be_coder(world, coders_end, callers_end, ours)
        coders_end.close()
        callers_end.close()

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
        """Run the agent's code; its output, and whether it has completed the task.

        Raises:
            Lost: the coder ended, or answered no output.
        """
        self._coder.send(code)
        while readable(self._calls, self._coder) is self._calls:
            self._answer_call(self._calls.receive())
        output = self._coder.receive()
        if not isinstance(output, str) or len(output) > LONGEST + MARK:
            raise Lost("it answered no output")
        return {"output": output, "completed": bool(self._world.task_completed())}

    def saved(self) -> dict[str, str]:
        """The databases' changes, by file name."""
        self._world._save_state(self._world.output_db_home_path_on_disk)
        folder = SAVED / self._world.task_id / "dbs"
        return {path.name: path.read_text() for path in folder.iterdir()}

    def _answer_call(self, call: Any) -> None:
        """Answer one call of an API."""
        response, error = attempt(self._respond, call)
        number = call[0] if isinstance(call, list) and call else None
        self._calls.send([number, f"{type(error).__name__}: {error}"] if error else [number, *response])

    def _respond(self, call: Any) -> tuple[int, list[tuple[str, str]], str]:
        """Status, headers and body. Raises whatever a call that is none leads to."""
        _, method, url, headers, body = call
        request = httpx.Request(method, url, headers=headers, content=body.encode("latin-1"))
        if request.url.path.split("/")[1] not in self._open:
            raise PermissionError(f"{request.url.path} is not for agents")
        response = self._transport.handle_request(request)
        return response.status_code, response.headers.multi_items(), response.read().decode("latin-1")


class Caller(httpx.BaseTransport):
    """Takes the calls of the agent's code to the apps."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._lock = threading.Lock()
        self._numbers = itertools.count()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers, body = request.headers.multi_items(), request.read().decode("latin-1")
        with self._lock:
            number = next(self._numbers)
            self._lines.send([number, request.method, str(request.url), headers, body])
            answer = self._lines.receive()
            while answer[0] != number:  # of a call whose code ran out of time
                answer = self._lines.receive()
        if len(answer) == 2:
            raise RuntimeError(answer[1])
        _, status, given, content = answer
        return httpx.Response(status, headers=given, content=content.encode("latin-1"), request=request)


def be_world(lines: Lines, task: str, seconds: int) -> None:
    """Be a world: tell the task, then answer the server's requests."""
    made: list[TaskWorld] = []

    def begin() -> dict[str, Any]:
        made.append(TaskWorld(task, seconds))
        return made[0].begin()

    lines.send(answer_message(begin))
    while True:
        method, *args = lines.receive()
        lines.send(answer_message(getattr(made[0], method), *args))


def be_judge(lines: Lines, task: str, databases: dict[str, str]) -> None:
    """Tell upstream's verdict on a task's final databases."""
    lines.send(answer_message(_judge, task, databases))
    lines.receive()  # until it is killed


def shorten(text: str) -> str:
    """Cut the middle of a text that is longer than LONGEST characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"


def attempt(function: Callable[..., Any], *args: Any) -> tuple[Any, BaseException | None]:
    """What `function` returns, or what it raised: data, as agents' code may raise anything (SystemExit too)
    and upstream raises plain Exceptions."""
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001 - see above
        return None, error


def answer_message(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call `function` and return a message with its value or its error."""
    value, error = attempt(function, *args)
    return {"error": f"{type(error).__name__}: {error}"} if error else {"value": value}


def _be_coder(world: AppWorld, code: Lines, calls: Lines, apps: int) -> NoReturn:
    """Run the agent's code, piece by piece, until the apps are gone."""
    try:
        die_with_parent(apps)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # agents may wait for their own children
        hide_memory(False)
        _keep(code, calls)
        world.requester.client._transport = Caller(calls)
        world._save_state = world.save_logs = lambda *_: None  # the apps do
        with suppress(Lost):
            while True:
                code.send(shorten(_run(world, code.receive())))
    finally:
        os._exit(0)


def _keep(*kept: Lines) -> None:
    """Let all other descriptors lead nowhere; their numbers stay taken, as objects left behind close them."""
    numbers = {0, 1, 2, *(lines.socket.fileno() for lines in kept)}
    for number in {*range(DESCRIPTORS)} - numbers:
        with suppress(OSError):  # not open
            os.fstat(number)
            os.dup2(0, number)


def _run(world: AppWorld, code: str) -> str:
    """The output of a piece of code, or how it failed."""
    try:
        ast.parse(code)
    except SyntaxError:
        pass  # upstream says it well
    except (ValueError, RecursionError, MemoryError) as error:  # and does not expect these
        return f"{FAILED}{type(error).__name__}: {error}"
    output, raised = attempt(world.execute, code)
    if raised:  # by the agent's code: its observation
        world.safety_guard.disable()
        return FAILED + "".join(traceback.format_exception_only(raised)).strip()
    return str(output)


def _judge(task: str, databases: dict[str, str]) -> dict[str, Any]:
    update_root(os.getcwd())
    folder = SAVED / task / "dbs"
    folder.mkdir(parents=True)
    for name, content in databases.items():
        (folder / Path(name).name).write_text(content)
    verdict: dict[str, Any] = evaluate_task(task, RUN, save_report=False).to_dict()
    return verdict
