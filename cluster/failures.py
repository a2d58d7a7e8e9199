"""Failures: typed, counted, bounded. An infrastructure failure is never a reward.

1. It is retried where it happens (a fresh slot, the same seed) up to `rollout.retries` times.
2. After that, its episode is dropped from the group and counted here.
3. If the teacher or the judge fails or is too slow, the group trains without its hints, and the failure is
   counted.
4. A group that failures left with nothing to train on is lost: its step plays another one, and its task is
   drawn again after the other tasks of the epoch. A task that loses its groups by itself is set aside.
5. An actor whose process is lost is replaced, and the run continues (`heal.py`).
6. The run stops if a step loses too many groups (`Losses`), if too many episodes fail (`FailureBudget`), or
   if too many tasks are set aside (`set_aside.py`).
"""

from __future__ import annotations

import signal
from collections import Counter, deque
from collections.abc import Container, Iterable, Sequence
from typing import get_args

from hindsight.rollout.types import Failure, FailureKind, Group

KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
RECENT_STEPS = 20  # what `failure_budget` is a share of: long enough to tell an outage from a bad minute
LOST_ROUNDS = 3  # a step may lose this multiple of its groups: a longer outage needs the user
SET_ASIDE_AFTER = 2  # groups in a row; one may be bad luck, and each costs all its retries


class RunError(RuntimeError):
    """The run cannot start or continue; the message is for the user and names the fix."""


class Interrupted(Exception):
    """A signal ended the command in order."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number  # of the process, as a shell reports a signal
        super().__init__(f"stopped by {signal.Signals(number).name}")


class BudgetSpent(RunError):
    """A larger share of the recent episodes failed than `failure_budget` allows."""


class NothingTrained(RunError):
    """A step lost too many groups to failures."""


def by_kind(failures: Iterable[Failure]) -> Counter[str]:
    """How many failures there are of each kind."""
    return Counter(failure.kind for failure in failures)


def list_failures(counts: Counter[str]) -> str:
    """Kinds of failures and their numbers, the most frequent first."""
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def typical(failures: Sequence[Failure]) -> Failure:
    """The last failure of the most frequent kind; there must be one."""
    [(most, _)] = by_kind(failures).most_common(1)
    return next(failure for failure in reversed(failures) if failure.kind == most)


def own_fault(group: Group) -> int | None:
    """How many groups in a row a task may lose like this one before it is set aside.

    None: the loss says nothing about the task, as it was not its environment that failed in at least half of
    the episodes.
    """
    kinds = [failure.kind for failure in group.failures]
    if "prompt" in kinds:
        return 1  # the same tokens at every try
    own = sum(kind.startswith("env_") for kind in kinds)
    return SET_ASIDE_AFTER if own and 2 * own >= len(kinds) + len(group.trajectories) else None


class FailureBudget:
    """Counts failures by kind, and stops a run of whose recent episodes too large a share failed.

    Failures of tasks that are set aside and prompts that are too long are counted, but cost nothing: other
    limits bound them.
    """

    def __init__(self, share: float, episodes: int = 0, excused: Container[str] = ()) -> None:
        """
        Args:
            share: `failure_budget`.
            episodes: that a step asks for. A run that has just begun is judged as if it had `RECENT_STEPS`.
            excused: ids of tasks that are set aside.
        """
        self.share, self.least, self.excused = share, episodes * RECENT_STEPS, excused
        self.counts: Counter[str] = Counter()  # of the whole run, resumes included
        self._recent: deque[tuple[int, int, list[Failure]]] = deque()  # (step, episodes, their failures)

    def restore(self, counts: Counter[str]) -> None:
        """Begin again with these totals; what was recent is forgotten."""
        self.counts = counts
        self._recent.clear()

    def add(self, step: int, episodes: int, failures: Iterable[Failure]) -> None:
        """Count the failures of episodes that were asked for in a step.

        Raises:
            BudgetSpent: too many of the last `RECENT_STEPS` steps.
        """
        failures = list(failures)
        self.counts += by_kind(failures)
        self._recent.append((step, episodes, [one for one in failures if one.kind != "prompt"]))
        while self._recent[0][0] <= step - RECENT_STEPS:
            self._recent.popleft()
        spent = [one for *_, failed in self._recent for one in failed if one.task not in self.excused]
        asked = max(self.least, sum(count for _, count, _ in self._recent))
        if len(spent) > self.share * asked:
            counts, last = list_failures(by_kind(spent)), spent[-1]
            raise BudgetSpent(
                f"{len(spent)} failures ({counts}) in the last {RECENT_STEPS} steps: more than "
                f"failure_budget = {self.share:g} of their {asked} episodes. The last: {last.kind} on "
                f"task {last.task}: {last.message}. Repair what fails, or raise failure_budget; resume=auto "
                "resumes from the last checkpoint"
            )


class Losses:
    """Groups a step has lost to failures. The step replaces them, up to a limit."""

    def __init__(self, groups: int, first: bool) -> None:
        """
        Args:
            groups: that the step asks for.
            first: whether nothing has been trained yet.
        """
        self.groups, self.first = groups, first
        self._failures: list[Failure] = []  # of all lost groups
        self._lost = 0  # without those that set their task aside
        self._unread = 0  # lost one after the other, as the prompt was too long

    def add(self, failures: Sequence[Failure], set_aside: bool, taken: int) -> None:
        """Count a lost group.

        Args:
            set_aside: whether its task is set aside now, so that this loss does not happen again.
            taken: groups that the step can train on so far.

        Raises:
            NothingTrained: the step has lost too many, or the first step all, to prompts that do not fit.
        """
        self._failures += failures
        self._lost += not set_aside
        unread = any(failure.kind == "prompt" for failure in failures)
        self._unread = self._unread + 1 if unread and not taken else 0
        last = typical(self._failures)
        if self.first and self._unread >= max(2, self.groups):
            raise NothingTrained(f"no task of the first step fits the model's context: {last.message}")
        if self._lost >= LOST_ROUNDS * self.groups:
            counts = list_failures(by_kind(self._failures))
            raise NothingTrained(
                f"one training step lost {self._lost} groups to failures, {LOST_ROUNDS} times "
                f"rollout.num_groups = {self.groups} ({counts}). The last {last.kind}, on task "
                f"{last.task}: {last.message}. Repair this first; resume=auto then resumes from the last "
                "checkpoint"
            )
