"""The task sampler: which task each group trains on. None is lost or trained twice, resumes included.

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
    """Hands out ordinals, takes back those that were not trained."""

    tasks: Sequence[TaskSpec]
    seed: int
    next: int = 0  # first ordinal never handed out
    returned: list[int] = field(default_factory=list)  # handed out, not trained, to be handed out again
    outstanding: set[int] = field(default_factory=set)  # handed out, neither trained nor returned
    trained: int = 0

    def admit(self) -> int:
        """The next ordinal to roll out; a returned one goes first."""
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
        """The group took part in an update (or carried no signal, which is known only after its rollout)."""
        self.outstanding.remove(ordinal)
        self.trained += 1

    def requeue(self, ordinal: int) -> None:
        """The group failed for reasons of infrastructure: its task must come again."""
        self.outstanding.remove(ordinal)
        self.returned.append(ordinal)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs. Groups in flight count as returned: their rollouts are not saved."""
        return {
            "next": self.next,
            "returned": sorted([*self.returned, *self.outstanding]),
            "trained": self.trained,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.next, self.trained = state["next"], state["trained"]
        self.returned, self.outstanding = list(state["returned"]), set()
