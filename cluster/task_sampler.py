"""The task sampler decides which task each group trains on. No task is lost or trained twice, even on resume.

A group's *ordinal* fixes its task and all its random seeds. Each epoch is a fresh permutation of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hindsight.envs.tasks import TaskSpec


@dataclass
class TaskSampler:
    """Hands out ordinals and takes back those that were not trained."""

    tasks: Sequence[TaskSpec]
    seed: int
    next: int = 0  # first ordinal never handed out
    returned: list[int] = field(default_factory=list)  # re-queued: handed out, not trained
    outstanding: set[int] = field(default_factory=set)  # handed out, neither trained nor returned
    trained: int = 0

    def admit(self) -> int:
        """Return the next ordinal to roll out; re-queued ones go first."""
        if self.returned:
            ordinal = self.returned.pop(0)
        else:
            ordinal, self.next = self.next, self.next + 1
        self.outstanding.add(ordinal)
        return ordinal

    def task(self, ordinal: int) -> TaskSpec:
        """The task of an ordinal: a pure function of the seed."""
        epoch, index = divmod(ordinal, len(self.tasks))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.tasks))
        return self.tasks[int(order[index])]

    def mark_trained(self, ordinal: int) -> None:
        """Mark a group as trained: it took part in an update, or had no signal."""
        self.outstanding.remove(ordinal)
        self.trained += 1

    def requeue(self, ordinal: int) -> None:
        """Re-queue the task of a group that infrastructure failures kept from training."""
        self.outstanding.remove(ordinal)
        self.returned.append(ordinal)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs. Groups in flight count as re-queued, as rollouts are not saved."""
        return {
            "next": self.next,
            "returned": sorted([*self.returned, *self.outstanding]),
            "trained": self.trained,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.next, self.trained = state["next"], state["trained"]
        self.returned, self.outstanding = list(state["returned"]), set()
