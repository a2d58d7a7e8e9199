"""Failures: typed, counted, bounded. An infrastructure failure is never a reward.

1. It is retried where it happens (a fresh slot, the same seed) up to `rollout.retries` times.
2. After that, its episode is dropped from the group and counted here.
3. If the teacher or the judge fails or is too slow, the group trains without its hints, and the failure is
   counted. If the group then has nothing to train on (distillation, or a KL penalty without the reference
   policy), its task is re-queued.
4. A dead actor ends the run, except for environment shards, which restart; `resume=auto` continues the run.
5. After more than `failure_budget` failures the run stops and names the most frequent ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hindsight.rollout.types import Failure


class RunError(RuntimeError):
    """The run cannot start or continue; the message is for the user and names the fix."""


class BudgetSpent(RunError):
    """More infrastructure failures than `failure_budget` allows."""


class FailureBudget:
    """Counts failures by kind and stops the run after too many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: Counter[str] = Counter()
        self.last: Failure | None = None

    def add(self, failures: Iterable[Failure]) -> None:
        """Raises BudgetSpent when the count passes the limit."""
        for failure in failures:
            self.counts[failure.kind] += 1
            self.last = failure
        total = self.counts.total()
        if total > self.limit and self.last is not None:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.most_common())
            raise BudgetSpent(
                f"{total} infrastructure failures, more than failure_budget={self.limit} ({kinds}). "
                f"The last: {self.last.kind} on task {self.last.task}: {self.last.message}"
            )
