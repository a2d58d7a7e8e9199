"""The one reader of a run's folder. It works during the run, and without Ray or torch.

What a folder does not have (that of a run that has just started, say) is absent, never an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hindsight.cluster.failures import RunError
from hindsight.cluster.report.lines import LineError, read_rows

SCHEMA = 1  # of the folder: raised when a reader of the version before would misread it
ABOUT, CONFIG, METRICS, FAILURES, TIMELINE = (
    "run.json",
    "config.yaml",
    "metrics.jsonl",
    "failures.jsonl",
    "timeline.jsonl",
)
STATUS = "status.json"
PHASES = ("rollout", "feedback_and_teacher", "critic", "learner", "weight_sync")  # time/… of a step, in order
EPISODES, TOKENS, GROUPS = "trajectories", "tokens", "groups"  # folders
COLD = "before warm start"  # the evaluation that is not on the learning curve
KEY = re.compile(r"(step|eval)-(\d+)(?:-(.+?))?(?:--(.+))?")


class RunFolderError(RunError):
    """A folder that is no run's, or a file in it that cannot be read; the message says what to do."""


@dataclass(frozen=True)
class RunStage:
    """A part of a run that has episodes."""

    name: str  # "step 3", or "eval, after RL"
    key: str  # names its files: "step-000003", or "eval-000003-after-RL"
    step: int  # finished training steps
    training: bool  # or else an evaluation
    panel: str = ""  # of an evaluation on several panels, unless it is the first


def step_key(step: int) -> str:
    """The key of a training step."""
    return f"step-{step:06d}"


def evaluation_key(step: int, stage: str, panel: str = "") -> str:
    """The key of an evaluation on a panel; no name: on the first one."""
    end = f"--{panel.replace('/', '.')}" if panel else ""
    return f"eval-{step:06d}-{stage.replace(' ', '-')}{end}"


def step_of_key(key: str) -> int | None:
    """The step of a key; None if it is none."""
    found = KEY.fullmatch(key)
    return int(found[2]) if found else None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The paths without the parts that all of them begin or end with: a name for each."""
    parts = [list(path.resolve().parts) for path in paths]
    for end in (0, -1):
        while all(len(own) > 1 for own in parts) and len({own[end] for own in parts}) == 1:
            for own in parts:
                own.pop(end)
    return ["/".join(own) for own in parts]


class RunFolder:
    """What a run has written so far."""

    def __init__(self, path: Path | str) -> None:
        """`path`: the run's output folder.

        Raises:
            RunFolderError: it is no run's folder, or of a later version.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise RunFolderError(f"there is no folder {self.path}: name a run's output folder (`out`)")
        if not any((self.path / name).exists() for name in (ABOUT, CONFIG, METRICS, EPISODES)):
            raise RunFolderError(
                f"{self.path} is no run's folder: it has neither {ABOUT} nor {CONFIG} nor {METRICS}. "
                "Name the output folder (`out`) of a run"
            )
        schema = self.about().get("schema", SCHEMA)
        if schema != SCHEMA:
            raise RunFolderError(
                f"{self.path / ABOUT} has schema {schema!r}, and this version of Hindsight reads {SCHEMA}: "
                "read it with the version that wrote it, or a later one"
            )

    def config(self) -> dict[str, Any]:
        """The resolved settings; {} if there are none."""
        try:
            return dict(yaml.safe_load(self._text(CONFIG)) or {})
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"{self.path / CONFIG} cannot be read: {error}. Repair or delete it"
            ) from error

    def about(self) -> dict[str, Any]:
        """Its starts, with versions and outcomes (run.json); {} before the first."""
        try:
            return dict(json.loads(self._text(ABOUT) or "{}"))
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self.path / ABOUT} cannot be read: {error}. Delete it") from error

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The rows of metrics: "train", "sft" or "eval"; all by default."""
        return [row for row in self._rows(METRICS) if kind in (None, row["kind"])]

    def failures(self) -> list[dict[str, Any]]:
        """The tasks that were set aside."""
        return self._rows(FAILURES)

    def steps(self) -> list[RunStage]:
        """What has episodes, in the order of the run."""
        found = []
        for file in (self.path / EPISODES).glob("*.jsonl"):
            if match := KEY.fullmatch(file.stem):
                kind, step, stage = match[1], int(match[2]), (match[3] or "").replace("-", " ")
                panel = (match[4] or "").replace(".", "/")
                name = f"step {step}" if kind == "step" else f"eval, {stage}"
                name += f", {panel}" if panel else ""
                found.append(RunStage(name, file.stem, step, kind == "step", panel))
        return sorted(found, key=lambda one: (one.step, not one.training, "before" not in one.name, one.name))

    def episodes(self, key: str) -> list[dict[str, Any]]:
        """The episodes of a stage."""
        return self._rows(f"{EPISODES}/{key}.jsonl")

    def tokens(self, key: str) -> dict[int, dict[int, dict[str, Any]]]:
        """Episode -> turn -> its row with arrays over its tokens; {} where none was recorded."""
        found: dict[int, dict[int, dict[str, Any]]] = {}
        for row in self._rows(f"{TOKENS}/{key}.jsonl.gz"):
            found.setdefault(row["episode"], {})[row["turn"]] = row
        return found

    def groups(self, key: str) -> list[dict[str, Any]]:
        """A training step's groups without loss (`report.groups`); [] where none were recorded."""
        return self._rows(f"{GROUPS}/{key}.jsonl.gz")

    def timeline(self, step: int | None = None) -> list[dict[str, Any]]:
        """The spans of a step, or of all, by their start; those that contain others first."""
        rows = [row for row in self._rows(TIMELINE) if step is None or row["step"] == step]
        return sorted(rows, key=lambda row: (row["start"], -row["end"]))

    def _rows(self, name: str) -> list[dict[str, Any]]:
        try:
            return read_rows(self.path / name)
        except LineError as error:
            raise RunFolderError(f"{error}. Repair or delete it") from error

    def _text(self, name: str) -> str:
        file = self.path / name
        return file.read_text() if file.exists() else ""
