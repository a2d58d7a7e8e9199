"""ALFWorld: household tasks in text, over upstream's TextWorld games.

    AlfworldFamily ──manifest──► tasks: games generated once into the cache, or the official data
                   ──make──────► AlfworldEnv: upstream's environment, one per process

A task's data holds its game's path under the family's root folder and the game file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.core import GameState
from textworld.envs import PddlEnv

from hindsight.configs.schema import Env
from hindsight.envs.alfworld.expert import Expert, SearchExpert, UpstreamExpert
from hindsight.envs.alfworld.fast_textworld import accelerate
from hindsight.envs.alfworld.games import KINDS, make_games, write_game
from hindsight.envs.base import (
    DataMissing,
    Demonstration,
    DemoStep,
    EnvError,
    EnvFamily,
    Observation,
    StepResult,
    TextEnv,
)
from hindsight.envs.runtime.files import atomic_dir
from hindsight.envs.tasks import Manifest, TaskSpec

RULES = "You act in a text world to finish a task, one action per turn."
LISTING = "tasks.json"  # in a folder of generated games
FORMAT = 1  # of generated games; raised when the same seed would give other games
TREE = "json_2.1.1"  # the official data's folder
HELD_OUT = {"seen": "valid_seen", "unseen": "valid_unseen"}  # rooms of training, and others
UPSTREAM_DEFAULT = Path(
    "~/.cache/alfworld"
)  # importing alfworld puts this into $ALFWORLD_DATA where that is unset


class AlfworldEnv(TextEnv):
    """One upstream environment, into which one game after another is loaded.

    Upstream leaks a copy of its planner with every environment object and is not thread-safe, so a process
    makes one instance and uses it from one thread.
    """

    def __init__(self, root: Path, cache: Path, max_turns: int, expert: str = "search") -> None:
        """
        Args:
            root: the folder under which tasks name their games.
            cache: keeps translated games, shared by all processes.
            max_turns: actions after which an episode is truncated.
            expert: who runs demonstrations, "search" or "upstream".
        """
        super().__init__(max_turns)
        accelerate(cache / "translations")
        self._root = root
        self._expert = expert
        self._infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._env = AlfredDemangler(PddlEnv(self._infos), shuffle=False)
        self._loaded: Path | None = None
        self._state: GameState | None = None
        self._goal = ""

    def _reset(self, task: TaskSpec) -> Observation:
        path = self._path(task)
        if path != self._loaded:
            self._loaded = None
            try:
                self._env.load(str(path))
            except (OSError, KeyError, json.JSONDecodeError) as error:
                raise EnvError(f"cannot load the game of task {task.id} from {path}: {error}") from error
            self._loaded = path
        self._state = self._env.reset()
        self._goal = self._state["feedback"].strip().rpartition("\n")[2]
        return self._observe()

    def _step(self, action: str) -> StepResult:
        self._state, _, _ = self._env.step(action)
        won = bool(self._state["won"])
        return StepResult(self._observe(), self._state["feedback"], float(won), won, False, won)

    def reference(self, task: TaskSpec) -> list[str] | None:
        return json.loads(self._path(task).read_text()).get("walkthrough")

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        rng = random.Random(f"{seed} {task.id}")
        self._infos.facts = self._expert == "upstream"  # costly, and the searching expert has no use for them
        first = observation = self.reset(task)
        player = self._player(task, first, rng)
        steps: list[DemoStep] = []
        offered: dict[str, None] = {}  # so far: many are not possible now, and nothing happens
        while self.playing:
            offered |= dict.fromkeys(observation.actions)
            wanted = player.act(observation)
            action = rng.choice(list(offered)) if rng.random() < noise else wanted
            result = self.step(action)
            player.see(action, result.feedback)
            steps.append(DemoStep(observation, action, wanted, result))
            observation = result.observation
        self._infos.facts = False
        return Demonstration(task, first, tuple(steps), steps[-1].result.success)

    def close(self) -> None:
        fast_downward.close_lib(self._env.unwrapped.downward_lib)

    def _player(self, task: TaskSpec, first: Observation, rng: random.Random) -> Expert:
        if self._expert == "upstream":
            random.seed(rng.random())  # upstream's player draws from the global generator
            return UpstreamExpert(self._path(task), lambda: self._state)
        return SearchExpert(first, rng)

    def _path(self, task: TaskSpec) -> Path:
        return self._root / task.data["game"]

    def _observe(self) -> Observation:
        assert self._state is not None
        text = self._state["feedback"]
        actions = tuple(action for action in self._state["admissible_commands"] if action != "help")
        return Observation(text, actions, state_key=text, rules=RULES, goal=self._goal)


class AlfworldFamily(EnvFamily):
    """ALFWorld's tasks: the official data where configured, else games generated once into the cache."""

    name = "alfworld"
    action_format = "tags"
    turn_limit = 50
    KINDS = KINDS

    def __init__(self, config: Env, cache: Path, expert: str = "search") -> None:
        """
        Raises:
            ValueError: the configuration names a task type that ALFWorld lacks.
        """
        super().__init__(config, cache)
        self._config = config
        self._cache = cache / "alfworld"
        self._official = _official_data(config.data)
        self._root = self._official or self._cache / "games"
        self._expert = expert

    def manifest(self) -> Manifest:
        return Manifest(
            train=self.draw("train", self._config.train_tasks),
            evaluation=self.draw("valid_unseen", self._config.eval_tasks),
        )

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """Official data: `alfworld/valid_seen`, `alfworld/valid_unseen`, with 140 and 134 games if complete.

        Generated games: `seen` and `unseen`, `env.eval_tasks` games in the rooms of training and in others.
        """
        if self._official:
            own = {f"{self.name}/{split}": partial(self._all, split) for split in HELD_OUT.values()}
        else:
            drawn = self._config.eval_tasks
            own = {name: partial(self.draw, split, drawn) for name, split in HELD_OUT.items()}
        return {**super().panels(), **own}

    def draw(self, split: str, count: int) -> tuple[TaskSpec, ...]:
        """Up to `count` tasks of "train", "valid_seen" or "valid_unseen", the kinds taking turns.

        Raises:
            DataMissing: the official data hold no such games.
        """
        if self._official:
            return self._chosen(split, count)
        return self._generated(split, count)

    def make(self) -> AlfworldEnv:
        if not self._official:
            for listing in self.panels().values():  # on another machine the games may not be there yet
                listing()
        return AlfworldEnv(self._root, self._cache, self._config.max_turns, self._expert)

    def _generated(self, split: str, count: int) -> tuple[TaskSpec, ...]:
        """The tasks of a split whose games are made by whoever asks first."""
        recipe = [FORMAT, version("alfworld"), self._config.seed, split, count, self.kinds]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
        folder = self._root / key

        def make(draft: Path) -> None:
            tasks = [asdict(task) for task in self._write(draft, key, split, count)]
            (draft / LISTING).write_text(json.dumps(tasks))

        listing = atomic_dir(folder, make) / LISTING
        return tuple(TaskSpec(**task) for task in json.loads(listing.read_text()))

    def _write(self, draft: Path, key: str, split: str, count: int) -> Iterator[TaskSpec]:
        for game in make_games(self._config.seed, split, count, self.kinds):
            path = write_game(draft, game)
            yield _task(path, f"{key}/{path.relative_to(draft)}", str(game.trajectory["task_type"]), split)

    def _chosen(self, split: str, count: int) -> tuple[TaskSpec, ...]:
        """Solvable official games, drawn by the seed."""
        queues: dict[str, list[Path]] = {kind: [] for kind in self.kinds}
        for kind, path in self._games(split):
            if kind in queues:
                queues[kind].append(path)
        for kind, queue in queues.items():
            random.Random(f"{self._config.seed} {split} {kind}").shuffle(queue)
        tasks: list[TaskSpec] = []
        while len(tasks) < count and any(queues.values()):
            for kind, queue in queues.items():
                chosen = _next_solvable(queue)
                if chosen and len(tasks) < count:
                    tasks.append(_task(chosen, str(chosen.relative_to(self._root)), kind, split))
        return self._found(tasks, split, self.kinds)

    def _all(self, split: str) -> tuple[TaskSpec, ...]:
        """Every solvable official game of a split, in the order of its path."""
        solvable = ((kind, path) for kind, path in self._games(split) if _next_solvable([path]))
        tasks = [_task(path, str(path.relative_to(self._root)), kind, split) for kind, path in solvable]
        return self._found(tasks, split, KINDS)

    def _games(self, split: str) -> Iterator[tuple[str, Path]]:
        """The official games of a split that upstream plays, solvable or not, with their kind."""
        for path in sorted((self._root / TREE / split).glob("*/*/game.tw-pddl")):
            name = path.parent.parent.name  # <task type>-<object>-<movable receptacle>-<receptacle>-<scene>
            kind = name.partition("-")[0]
            if kind in KINDS and "Sliced" not in name:  # upstream leaves sliced objects out
                yield kind, path

    def _found(self, tasks: list[TaskSpec], split: str, kinds: Sequence[str]) -> tuple[TaskSpec, ...]:
        if not tasks:
            folder = self._root / TREE / split
            raise DataMissing(f"{folder} holds no solvable game.tw-pddl of {', '.join(kinds)}: {HOW}")
        return tuple(tasks)


HOW = (
    "run `alfworld-download --data-dir FOLDER` and set env.data (or ALFWORLD_DATA) to FOLDER, "
    "or set neither to generate games"
)


def _official_data(configured: str | None) -> Path | None:
    """The folder of official data, `configured` or else $ALFWORLD_DATA; None: games are to be generated.

    Raises:
        DataMissing: a folder is named that holds no official data.
    """
    named = configured or os.environ.get("ALFWORLD_DATA")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if (folder / TREE).is_dir():
        return folder
    if not configured and folder == UPSTREAM_DEFAULT.expanduser().resolve():
        return None
    raise DataMissing(f"{folder} holds no ALFWorld data (no {TREE} in it): {HOW}")


def _task(path: Path, game: str, kind: str, split: str) -> TaskSpec:
    data: dict[str, Any] = {"game": game, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return TaskSpec(f"{path.parent.parent.name}/{path.parent.name}", "alfworld", kind, split, data)


def _next_solvable(queue: list[Path]) -> Path | None:
    """Take games off the queue up to the next that upstream would keep."""
    while queue:
        path = queue.pop()
        if json.loads(path.read_text()).get("solvable"):
            return path
    return None
