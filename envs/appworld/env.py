"""AppWorld: a person's errands over nine apps' APIs, done by writing Python, over upstream's AppWorld.

    AppWorldFamily ──manifest──► tasks: our own small set made once into the cache, or the official data
                   ──make──────► AppWorldEnv ──► `envs.appworld.server` in AppWorld's own interpreter
                                                   └─► a world: apps and the agent's code, isolated

An action is one piece of Python; what it defines stays for the next one. Success is upstream's: every test of
the task passes on the final databases. Decrypted parts of AppWorld may not be published: what is unpacked or
made here stays in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting
from hindsight.envs.appworld.host import VARIABLES, ServerHandle, Zygote, program, zygote
from hindsight.envs.appworld.tasks import TURN
from hindsight.envs.base import (
    DataMissing,
    EnvError,
    EnvFamily,
    InstanceLost,
    Observation,
    StepResult,
    TextEnv,
    Verdict,
)
from hindsight.envs.runtime.files import atomic_dir
from hindsight.envs.runtime.interpreters import interpreter, run_command
from hindsight.envs.runtime.json_lines import Lost
from hindsight.envs.tasks import Manifest, TaskSpec

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
KINDS = ("difficulty_1", "difficulty_2", "difficulty_3")  # upstream's grades
SPLITS = {"train": "train", "evaluation": "test_normal"}  # upstream's datasets that the tasks are drawn from
HELD_OUT = ("dev", "test_normal", "test_challenge")  # upstream's datasets that nothing is trained on
LONGEST = 30_000  # characters of one output, which the server cuts to fewer unless the agent's code broke it
LONGEST_NOTE = 4_000  # characters of one text of the verdict; it may quote what the agent's code stored
BEFORE = 0.9  # of a deadline: the server's is over before the owner of this process loses patience with it
RULES = """\
You are an assistant that runs errands for {first_name} {last_name} (email {email}, phone {phone_number}), \
your supervisor, by writing Python. It is now {datetime}.

Each of your answers is one piece of Python code. It is run, what it prints is shown to you, and its \
variables stay for the next piece. You reach the supervisor's apps through the object `apis`, as in \
`apis.APP.API(argument=value)`. The apps:
{apps}

Look things up before you use them:
- print(apis.api_docs.show_app_descriptions()) lists the apps,
- print(apis.api_docs.show_api_descriptions(app_name="APP")) lists the APIs of one,
- print(apis.api_docs.show_api_doc(app_name="APP", api_name="API")) shows an API's arguments and results.

Most apps want a login: `apis.supervisor.show_account_passwords()` and `apis.supervisor.show_profile()` have \
what it takes, and the `access_token` that it returns is an argument of the app's other APIs. Long lists \
come in pages.

Do what you are asked and change nothing else. Nobody answers questions. When all is done, call \
`apis.supervisor.complete_task(answer=...)` with the bare answer where you were asked for one, or \
`apis.supervisor.complete_task()` where you were not. That ends the task."""


@dataclass(frozen=True)
class AppWorldSettings(Env):
    """The section `env` for AppWorld."""

    sandbox: Literal["namespaces", "limits"] = setting(
        "namespaces", "isolation of agents' code: Linux namespaces, or less where those cannot be had"
    )

    @property
    def caveats(self) -> tuple[str, ...]:
        if self.sandbox == "namespaces":
            return ()
        return (
            "env.sandbox=limits: agents' code runs without namespaces, in a weaker sandbox "
            "(docs/reliability.md)",
        )


class AppWorldEnv(TextEnv):
    """One server that runs episodes, one after the other; if it fails, the next reset replaces it."""

    def __init__(self, zygote: Zygote, config: AppWorldSettings) -> None:
        """
        Args:
            zygote: starts the server.
            config: the limits on turns and time, and how the agent's code is isolated.

        Raises:
            EnvError: the server does not become ready, or the isolation cannot be had here.
        """
        super().__init__(config.max_turns)
        self._root = zygote.root
        self._zygote = zygote
        self._config = config
        self._server: ServerHandle | None = None
        self._start()

    def _reset(self, task: TaskSpec) -> Observation:
        if self._server is None:
            self._start()
        begun = self._call("reset", task.id, seconds=self._config.reset_timeout)
        apps = "\n".join(f"- {app}: {text}" for app, text in begun["apps"].items())
        rules = RULES.format(**begun["supervisor"], datetime=begun["datetime"], apps=apps)
        return Observation(begun["instruction"], state_key=_key(begun["instruction"]), rules=rules)

    def _step(self, action: str) -> StepResult:
        ran = self._call("execute", action, seconds=self._config.step_timeout)
        terminated = bool(ran["completed"] or "lost" in ran)
        verdict = self._judge(ran) if terminated else Verdict(0.0, False)
        said = _legible(ran["output"], LONGEST)
        observation = Observation(said, state_key=_key(said))
        return StepResult(observation, said, verdict.reward, terminated, False, verdict.success, verdict.info)

    def _finish(self) -> Verdict:
        return self._judge({})

    def _judge(self, ran: dict[str, Any]) -> Verdict:
        """The evaluator's verdict on the databases as the last code left them.

        Args:
            ran: the server's answer to that code.
        """
        # Lost: the agent's code has broken its own world. It loses the episode; the infrastructure is fine.
        found = ran if "lost" in ran else self._call("evaluate", seconds=self._config.step_timeout)
        if "lost" in found:
            return Verdict(0.0, False, {"lost": _legible(found["lost"], LONGEST_NOTE), "share": 0.0})
        info = _legible({"passes": found["passes"], "failures": found["failures"]}, LONGEST_NOTE)
        share = len(found["passes"]) / found["num_tests"]
        return Verdict(float(found["success"]), found["success"], info | {"share": share})

    def reference(self, task: TaskSpec) -> list[str] | None:
        """The task's solution: turn by turn for our own tasks, one piece for official ones that have one."""
        path = _folder(self._root, task.id) / "ground_truth" / "compiled_solution.py"
        if not path.is_file():
            return None
        code = path.read_text()
        if TURN in code:
            return dedent(code.partition(":\n")[2]).strip().split(f"\n{TURN}\n")
        return [f"{code.rstrip()}\n\nsolution(apis, requester)"]

    def close(self) -> None:
        """End the server, which takes its children along."""
        if self._server:
            self._server.end(patience=5.0)
        self._server = None

    def _start(self) -> None:
        settings = {
            "seconds": self.code_seconds,
            "cpu": self.code_seconds * self._config.max_turns + 60,
            "patience": self._config.reset_timeout,
            "mode": self._config.sandbox,
        }
        try:
            self._server = ServerHandle(self._zygote, settings, BEFORE * self._config.reset_timeout)
        except Lost as error:
            kind = EnvError if self._zygote.alive else InstanceLost
            raise kind(f"AppWorld's server failed: {error}") from error

    @property
    def code_seconds(self) -> int:
        """Seconds that one piece of code may take: so much less than a step that the rest of it fits in."""
        return max(1, int(self._config.step_timeout / 2))

    def _call(self, method: str, *args: Any, seconds: float) -> Any:
        """The server's answer to a request.

        Raises:
            EnvError: it answered with an error; or it died, hung or sent garbage, and has been ended.
        """
        if self._server is None:
            raise EnvError("the server has failed: reset to start another")
        try:
            return self._server.call(method, *args, seconds=BEFORE * seconds)
        except Lost as error:
            self._server.end()
            self._server = None
            raise EnvError(f"AppWorld's server failed: {error}") from error


class AppWorldFamily(EnvFamily):
    """AppWorld's tasks: the official data where configured, else our own small set."""

    name = "appworld"
    action_format = "code"
    turn_limit = 40
    KINDS = KINDS
    Settings = AppWorldSettings

    def __init__(self, config: AppWorldSettings, cache: Path) -> None:
        """
        Raises:
            ValueError: the configuration names a difficulty that AppWorld lacks.
            DataMissing: the folder of official data holds none.
        """
        super().__init__(config, cache)
        self._config = config
        self._cache = cache
        self._official = _official_data(config.data)

    def manifest(self) -> Manifest:
        """
        Raises:
            DataMissing: AppWorld is not installed, or the data lack a dataset.
        """
        return Manifest(
            train=self._draw("train", self._config.train_tasks),
            evaluation=self._draw("evaluation", self._config.eval_tasks),
        )

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """Of official data, `appworld/dev` and so on: each dataset in its order."""
        official = {f"{self.name}/{split}": partial(self._dataset, split) for split in HELD_OUT}
        return {**super().panels(), **(official if self._official else {})}

    def preload(self) -> None:
        self._zygote()

    refresh = preload

    def make(self) -> AppWorldEnv:
        return AppWorldEnv(self._zygote(), self._config)

    def _zygote(self) -> Zygote:
        return zygote(interpreter(self.name, self._cache), self.root)

    @property
    def root(self) -> Path:
        """The folder that holds `data`; our own set is made by whoever asks first, within a minute."""
        python = interpreter(self.name, self._cache)
        if self._official:
            return self._official
        sources = b"".join((HERE / f"{name}.py").read_bytes() for name in ("mini", "tasks"))
        origin = hashlib.sha256(sources + str(python).encode()).hexdigest()[:12]

        def make(draft: Path) -> None:
            log.info("making a small AppWorld in %s", draft)
            run_command(program(python, "mini", str(draft)), **VARIABLES)

        return atomic_dir(self._cache / "appworld" / f"mini-{origin}", make)

    def _draw(self, part: str, count: int) -> tuple[TaskSpec, ...]:
        split = SPLITS[part]
        kept = [task for task in self._dataset(split) if task.kind in self.kinds]
        random.Random(f"{self._config.seed} {split}").shuffle(kept)
        return tuple(kept[:count])

    def _dataset(self, split: str) -> tuple[TaskSpec, ...]:
        root = self.root
        listing = root / "data" / "datasets" / f"{split}.txt"
        if not listing.is_file():
            raise DataMissing(f"{listing} is not there: {HOW}")
        names = (line.strip() for line in listing.read_text().splitlines())
        return tuple(_task(root, name, split) for name in names if name)


HOW = (
    "run `APPWORLD_ROOT=FOLDER appworld download data` with AppWorld's own interpreter and set env.data (or "
    "APPWORLD_ROOT) to FOLDER, or set neither to use the small set of our own"
)


def _official_data(configured: str | None) -> Path | None:
    """The folder that holds the official `data`, `configured` or else $APPWORLD_ROOT; None: our own set.

    Raises:
        DataMissing: a folder is named that holds no data.
    """
    named = configured or os.environ.get("APPWORLD_ROOT")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not (folder / "data" / "tasks").is_dir():
        raise DataMissing(f"{folder} holds no AppWorld data (no data/tasks in it): {HOW}")
    return folder


def _folder(root: Path, task: str) -> Path:
    return root / "data" / "tasks" / task


def _task(root: Path, name: str, split: str) -> TaskSpec:
    """A dataset's task with a digest of all its files."""
    folder, digest = _folder(root, name), hashlib.sha256()
    try:
        kind = (
            f"difficulty_{json.loads((folder / 'ground_truth' / 'metadata.json').read_text())['difficulty']}"
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataMissing(f"task {name} of {split} is damaged ({error}): {HOW}") from error
    for path in sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return TaskSpec(name, "appworld", kind, split, {"sha256": digest.hexdigest()})


def _legible(said: Any, longest: int) -> Any:
    """JSON that an agent's code may have had a hand in, without lone surrogates and with texts of bounded
    length: what an agent writes must not count as a failure of the infrastructure."""
    if isinstance(said, dict):
        return {key: _legible(value, longest) for key, value in said.items()}
    if isinstance(said, list):
        return [_legible(value, longest) for value in said]
    return said[:longest].encode(errors="replace").decode() if isinstance(said, str) else said


def _key(text: str) -> str:
    """What anchors are grouped by: the last output, which is all that tells of the hidden state."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
