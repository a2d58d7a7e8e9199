"""The task sampler decides which task each group trains on. No task is lost or trained twice, even on resume.

A group's *ordinal* fixes its task and all its random seeds. Each epoch is a fresh permutation of the tasks.
Ordinals of tasks that are set aside are skipped; the permutations stay as they are.
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
    aside: set[str] = field(default_factory=set)  # ids of tasks that are set aside; never all
    next: int = 0  # first ordinal never handed out
    interrupted: list[int] = field(default_factory=list)  # in flight when the run ended: the first to come
    lost: list[tuple[int, int]] = field(default_factory=list)  # (handed out again at this `next`, ordinal)
    outstanding: list[int] = field(default_factory=list)  # handed out, neither trained nor returned
    losses: dict[str, int] = field(default_factory=dict)  # task -> groups in a row lost by its own fault
    trained: int = 0

    def admit(self) -> int:
        """Return the next ordinal to roll out; those that were lost come after the others of their epoch."""
        while True:
            if self.interrupted:
                ordinal = self.interrupted.pop(0)
            elif self.lost and self.lost[0][0] <= self.next:
                ordinal = self.lost.pop(0)[1]
            else:
                ordinal, self.next = self.next, self.next + 1
            if self.task(ordinal).id not in self.aside:
                self.outstanding.append(ordinal)
                return ordinal

    def task(self, ordinal: int) -> TaskSpec:
        """The task of an ordinal: a pure function of the seed."""
        epoch, index = divmod(ordinal, len(self.tasks))
        return self.tasks[self._order(epoch)[index]]

    def coming(self) -> list[TaskSpec]:
        """All tasks, in the order in which each will be handed out next."""
        epoch, index = divmod(self.next, len(self.tasks))
        order = self._order(epoch)[index:] + self._order(epoch + 1)
        return [self.tasks[number] for number in dict.fromkeys(order)]

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(len(self.tasks)).tolist()
        return order

    def mark_trained(self, ordinal: int) -> None:
        """Mark a group as trained: it took part in an update, or had no signal."""
        self.outstanding.remove(ordinal)
        self.losses.pop(self.task(ordinal).id, None)
        self.trained += 1

    def requeue(self, ordinal: int, most: int | None = None) -> bool:
        """Take back a group that failures kept from training, and re-queue or set aside its task.

        Args:
            most: groups in a row that the task may lose like this; None: it is not the task's fault.

        Returns:
            Whether the task is set aside now, and was not before. Its groups are then never drawn again.
        """
        self.outstanding.remove(ordinal)
        task = self.task(ordinal).id
        if task in self.aside:
            return False
        if most is not None:
            self.losses[task] = self.losses.get(task, 0) + 1
            if self.losses[task] >= most:
                del self.losses[task]
                self.aside.add(task)
                return True
        epoch = self.next // len(self.tasks)
        self.lost.append(((epoch + 1) * len(self.tasks), ordinal))
        return False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs. Groups in flight will be played again: rollouts are not saved.

        The tasks that are set aside are not part of it.
        """
        return {
            "next": self.next,
            "returned": [*self.outstanding, *self.interrupted],
            "lost": list(self.lost),
            "losses": dict(self.losses),
            "trained": self.trained,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.next, self.trained = state["next"], state["trained"]
        self.interrupted, self.outstanding = list(state["returned"]), []
        self.lost = [(due, ordinal) for due, ordinal in state["lost"]]
        self.losses = dict(state["losses"])
