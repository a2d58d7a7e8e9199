"""The documents of the pages of `hindsight view`: pure functions of a run's folder.

A document is plain data that JSON can hold, addressed by a path. The server answers `data/PATH.js`, and an
export has such a file.

    runs                                the runs that are shown
    R/overview                          run number R: what is trained, where it stands, its curve
    R/settings                          its settings and the defaults that they differ from
    R/index/STAGE                       the episodes of a stage, as columns
    R/episode/STAGE/EPISODE             one episode, turn by turn
    R/tokens/STAGE/EPISODE              what was recorded of its sampled tokens
    R/timeline/STEP                     who worked when in a training step
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from functools import cache, cached_property
from typing import Any, TypeVar

import yaml

from hindsight.cluster.report.run_folder import EPISODES, PHASES, RunFolder, RunStage, flat
from hindsight.configs.check import render
from hindsight.configs.load import load_config, methods
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.envs.drawing import draw_turn

Document = dict[str, Any]
T = TypeVar("T")
Version = tuple[str, int]  # key of a stage, and when its file was written
CURVES = ("rollout/success", "rollout/turns_per_episode", "rollout/tokens_per_turn", "time/step")
PER_STEP = ("failures/retried", "failures/groups_lost")
LEFT_OUT = ("_seconds", "/total", "/tasks_set_aside")  # no counts, or sums of others
COLUMNS = ("episode", "group", "trial", "task", "kind", "success", "reward", "turns", "ended")
# Arrays over a turn's tokens that the page colors or shows; the others stay in the run's folder.
PER_TOKEN = (
    *("advantage", "rollout_logprob", "teacher_logprob", "weight", "raw_weight"),
    *("value", "return", "lag", "share"),
)
DIGITS = 4  # significant ones, of every number on a page
KEPT_STAGES = 3  # parsed files that stay in memory: a reader looks at neighboring episodes


class NoSuchPage(LookupError):
    """The address names nothing that was recorded."""


class Pages:
    """The documents of one run. Parsed stages are kept, so that the next episode of a stage comes at once."""

    def __init__(
        self, run: RunFolder, own_drawings: bool = False, only: Collection[str] | None = None
    ) -> None:
        """
        Args:
            own_drawings: run the drawing module that belongs to the run's environment, if it is a user's.
            only: keys of the stages that have pages; by default all.
        """
        self.run, self.own_drawings, self.only = run, own_drawings, only
        self._episodes: OrderedDict[Version, list[Document]] = OrderedDict()
        self._tokens: OrderedDict[Version, dict[int, dict[int, Document]]] = OrderedDict()

    def document(self, kind: str, *address: str) -> Document:
        """The document of a page.

        Raises:
            NoSuchPage: the address names nothing that was recorded.
        """
        match kind, *address:
            case ["overview"]:
                return overview(self.run) | {"stages": [asdict(stage) for stage in self.stages()]}
            case ["settings"]:
                return {"settings": settings_page(self.run.config())}
            case ["index", stage]:
                return index(self._rows(stage))
            case ["episode", stage, number]:
                return episode_page(self._rows(stage), number, self._environment)
            case ["tokens", stage, number]:
                return tokens(self._token_rows(stage), number)
            case ["timeline", step]:
                return timeline(self.run, step)
        raise NoSuchPage("/".join((kind, *address)))

    def addresses(self) -> Iterator[tuple[str, ...]]:
        """Every document that the run has."""
        yield ("overview",)
        yield ("settings",)
        stages = self.stages()
        for step in dict.fromkeys(stage.step for stage in stages):
            yield "timeline", str(step)
        for stage in stages:
            yield "index", stage.key
            for number, row in enumerate(self._rows(stage.key)):
                yield "episode", stage.key, str(_number(row, number))
                if stage.training:
                    yield "tokens", stage.key, str(_number(row, number))

    def stages(self) -> list[RunStage]:
        """The stages that have pages."""
        return [stage for stage in self.run.steps() if self.only is None or stage.key in self.only]

    @cached_property
    def _environment(self) -> str:
        """The environment whose drawing is used: settings may name any file, which is not executed."""
        name = str(_setting(self.run.config(), "env.name") or "")
        return name if self.own_drawings or name in ENVIRONMENTS.builtin else ""

    def _rows(self, stage: str) -> list[Document]:
        return _kept(self._episodes, self._version(stage), lambda: self.run.episodes(stage))

    def _token_rows(self, stage: str) -> dict[int, dict[int, Document]]:
        return _kept(self._tokens, self._version(stage), lambda: self.run.tokens(stage))

    def _version(self, stage: str) -> Version:
        """A stage as it is now: a run that goes back to a checkpoint writes its later stages again.

        Raises:
            NoSuchPage: it is not listed. Nothing else becomes the name of a file.
        """
        if all(one.key != stage for one in self.stages()):
            raise NoSuchPage(stage)
        return stage, (self.run.path / EPISODES / f"{stage}.jsonl").stat().st_mtime_ns


def overview(run: RunFolder) -> Document:
    """What is trained, on what, and where it stands; without its stages."""
    config, about = run.config(), run.about()
    rows = run.metrics()
    train = [row for row in rows if row.get("kind") == "train"]
    evaluations = [row for row in rows if row.get("kind") == "eval"]
    names = [name for name in (*CURVES, *(f"time/{phase}" for phase in PHASES)) if _any(train, name)]
    return {
        "starts": about.get("starts", []),
        "facts": {key: _setting(config, key) for key in FACTS if _setting(config, key) is not None},
        "steps": config.get("steps"),
        "last_time": max((row["time"] for row in rows if row.get("time")), default=None),
        "train": {"step": [row["step"] for row in train]}
        | {name: [row.get(name) for row in train] for name in names},
        "evaluations": [
            {"step": row["step"], "stage": row.get("stage")}
            | {name: row.get(f"eval/{name}") for name in ("success", "low", "high", "episodes", "turns")}
            for row in evaluations
        ],
        "failures": failures(train),
        "set_aside": run.failures(),
    }


def failures(train: Sequence[Document]) -> dict[str, float]:
    """How many failures of each kind the run had: counts per step are added, others are running ones."""
    summed = {name: sum(row.get(name) or 0 for row in train) for name in PER_STEP}
    last = train[-1] if train else {}
    running = {
        name: count
        for name, count in last.items()
        if name.startswith(("failures/", "restarts/")) and not name.endswith(LEFT_OUT)
    }
    return {name: count for name, count in (running | summed).items() if count}


FACTS = (
    *("method", "model.path", "env.name", "env.train_tasks", "env.eval_tasks", "env.max_turns"),
    *("rollout.num_groups", "rollout.group_size", "credit.advantage", "feedback.sources", "signal.name"),
    *("learner.lr", "seed"),
)


def settings_page(config: Document) -> list[Document]:
    """Every setting of a run, and the default where it differs: of the method, if that is a built-in one."""
    defaults = _defaults(config.get("method"))
    return [
        {"key": key, "value": value}
        | ({"default": defaults[key]} if key in defaults and defaults[key] != value else {})
        for key, value in flat(config).items()
    ]


@cache
def _defaults(method: str | None) -> Document:
    if method and method not in methods():  # a file, which is not executed, or of another version
        return {}
    return flat(yaml.safe_load(render(load_config(None, [f"method={method}"] if method else []))))


def index(rows: Sequence[Document]) -> Document:
    """The episodes of a stage as columns; a column without any value is left out."""
    made: dict[str, list[Any]] = {
        "episode": [_number(row, at) for at, row in enumerate(rows)],
        "turns": [len(row["turns"]) for row in rows],
        **{name: [row.get(name) for row in rows] for name in COLUMNS if name not in ("episode", "turns")},
    }
    return {name: column for name, column in made.items() if any(one is not None for one in column)}


def episode_page(rows: Sequence[Document], number: str, environment: str) -> Document:
    """One episode: its row, with what each turn shows drawn as blocks (`envs.drawing`)."""
    row = next((row for at, row in enumerate(rows) if str(_number(row, at)) == number), None)
    if row is None:
        raise NoSuchPage(f"episode {number}")
    return {**row, "episode": int(number), "turns": [_turn(turn, environment) for turn in row["turns"]]}


def _turn(turn: Document, environment: str) -> Document:
    """The action is drawn where its result is, unless it is a text: the response shows that already."""
    action = turn["action"] or ""
    came_back = draw_turn(environment, "", action, turn["feedback"])
    said = {"kind": "text", "text": action}
    return {
        **turn,
        "seen": draw_turn(environment, turn["observation"], "", ""),
        "came_back": [block for block in came_back if block != said],
    }


def tokens(rows: dict[int, dict[int, Document]], number: str) -> Document:
    """What was recorded of an episode's tokens, by turn; no turns if nothing was."""
    turns = rows.get(int(number), {}) if number.isdecimal() else {}
    return {
        "turns": {
            str(turn): {"prompt": row.get("prompt"), "tokens": row["tokens"], "action": row.get("action")}
            | {name: row[name] for name in PER_TOKEN if _given(row.get(name))}
            for turn, row in turns.items()
        }
    }


def timeline(run: RunFolder, step: str) -> Document:
    """The spans of a training step, in seconds from the first one, and what its episodes waited for."""
    spans = run.timeline(int(step)) if step.isdecimal() else []
    start = min((span["start"] for span in spans), default=0.0)
    episodes = [span for span in spans if span.get("turns")]
    return {
        "start": start,
        "episodes": len(episodes),
        "episode_seconds": sum(one["end"] - one["start"] for one in episodes),
        "engine_seconds": sum(until - since for one in episodes for since, until in one["turns"]),
        "spans": [
            {
                "role": one["role"],
                "name": one["name"],
                "start": one["start"] - start,
                "end": one["end"] - start,
            }
            for one in spans
        ],
    }


def as_script(path: str, document: Document) -> str:
    """A document as an ASCII script that hands it to the page as data: nothing in it can run."""
    text = json.dumps(_rounded(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"hindsight({json.dumps(path)},{json.dumps(text)})\n"


def _rounded(value: Any) -> Any:
    """Numbers with DIGITS significant digits, so that documents are small; null for what is not finite."""
    match value:
        case float():
            if not math.isfinite(value):
                return None
            return value if abs(value) >= 10**DIGITS else float(f"{value:.{DIGITS}g}")
        case dict():
            return {str(key): _rounded(one) for key, one in value.items()}
        case list() | tuple():
            return [_rounded(one) for one in value]
    return value


def _given(values: Sequence[float | None] | None) -> bool:
    return values is not None and any(value is not None for value in values)


def _number(row: Document, at: int) -> int:
    return int(row.get("episode", at))


def _setting(config: Document, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _any(rows: Sequence[Document], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def _kept(kept: OrderedDict[Version, T], key: Version, read: Callable[[], T]) -> T:
    if key not in kept:
        kept[key] = read()
    kept.move_to_end(key)
    while len(kept) > KEPT_STAGES:
        kept.popitem(last=False)
    return kept[key]
