"""Failures: typed, counted, bounded. An infrastructure failure is never a reward.

1. It is retried where it happens (a fresh slot, the same seed) up to `rollout.retries`.
2. Then its episode is dropped from the group and counted here.
3. A teacher that fails or is too slow costs only the reweighting of that group: it trains as plain GRPO, and
   is counted. A judge that does not answer costs only the hindsight that it was asked for, and is counted.
   Where that was all that the group could have taught (distillation, or a penalty without its reference), its
   task comes again.
4. An actor that has died ends the run, but for environment shards, which start again: `resume=auto` goes on.
5. When more than `failure_budget` have been counted the run stops cleanly, naming what failed most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hindsight.rollout.types import Failure


class RunError(RuntimeError):
    """The run cannot start or go on; the message is for the user and names the fix."""


class BudgetSpent(RunError):
    """More infrastructure failures than `failure_budget` allows."""


class FailureBudget:
    """Counts failures by kind and stops the run when they are too many."""

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
