"""Tasks, the manifest of those that an agent is trained and evaluated on, and panels for evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskSpec:
    """One task: everything an environment needs to reset to the same initial state."""

    id: str  # unique within the manifest
    env: str  # the environment's name, e.g. "alfworld"
    kind: str  # the benchmark's own task type, e.g. "pick_heat_then_place_in_recep"
    split: str  # "train", "valid_seen", "valid_unseen", ...
    data: dict[str, Any] = field(default_factory=dict)  # JSON-serializable, read by the adapter alone


@dataclass(frozen=True)
class Manifest:
    """The training tasks and the fixed evaluation split of one environment."""

    train: tuple[TaskSpec, ...]
    evaluation: tuple[TaskSpec, ...]

    @property
    def digest(self) -> str:
        """Content hash of all tasks."""
        return _digest((*self.train, *self.evaluation))


@dataclass(frozen=True)
class Panel:
    """Tasks that are evaluated together, under a name that results can be quoted with."""

    name: str  # such as "alfworld/valid_seen"
    tasks: tuple[TaskSpec, ...]

    @property
    def digest(self) -> str:
        """Content hash of its tasks: results on panels of equal digests can be compared."""
        return _digest(self.tasks)

    def __str__(self) -> str:
        return f"panel {self.name}: {len(self.tasks)} tasks, digest {self.digest}"


def _digest(tasks: Iterable[TaskSpec]) -> str:
    """Content hash (16 hex digits) over every task in order; equal digests mean equal tasks."""
    lines = (json.dumps(asdict(task), sort_keys=True) for task in tasks)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
