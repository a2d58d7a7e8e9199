"""Replace actors whose process died, and restore the state the new process is missing.

Ray starts a lost process again, in its place and behind the same handle, at most RESTARTS times per actor.

    environment shard, worker   lack nothing: their episodes are run again, with the same seeds
    engine                      gets no episode until it has the synced weights (`Publisher.keep`)
    teacher, reference policy   get the weights of their last sync (`teacher.pool`)
    simulated user's endpoint   lacks nothing: its episodes are run again, with the same seeds
    learner and critic ranks    live and die together, and go back to the last checkpoint (`Trainer.recover`)

Where roles take turns on a GPU, a new process would meet the role that has the turn, so none is replaced.
Then, and if more is lost than one role can make good, everything starts again from the last checkpoint
(`Starts`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hindsight.envs.runtime.remote import ActorUnavailable, RemoteTimeout, back, end_of
from hindsight.learner.rank import RanksLost

RESTARTS = 10  # of one actor's process; more look like a defect that every new process meets again
STARTS = 3  # of everything, without a new checkpoint in between; more look like a defect, too


@dataclass
class Restarts:
    """What has been replaced in this run so far, by role."""

    counts: Counter[str] = field(default_factory=Counter)
    # until recovery finished
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    say: Callable[[str], None] = print  # tells the user

    def note(self, role: str, seconds: float, reason: object = "its process had ended") -> None:
        """Count a restart that took `seconds`."""
        self.counts[role] += 1
        self.seconds[role] += seconds
        self.say(f"{role}: replaced after {seconds:.0f} s ({reason})")

    def metrics(self) -> dict[str, float]:
        """The figures as part of a metrics row."""
        counts = {f"restarts/{role}": float(count) for role, count in self.counts.items()}
        return counts | {f"restarts/{role}_seconds": spent for role, spent in self.seconds.items()}


@dataclass
class Starts:
    """Decides whether to restart the whole run after an unrecoverable loss."""

    newest: int  # step of the newest checkpoint; −1: there is none, and the run would begin anew
    opened: bool = False  # whether all actors have been there once; before, the settings may be what is wrong
    vain: int = 0  # losses in a row without a new checkpoint

    def again(self, error: Exception, newest: int) -> bool:
        """Whether to start again after this error, with that newest checkpoint."""
        self.vain = 0 if newest > self.newest else self.vain + 1
        self.newest = newest
        if not self.opened and not isinstance(error, ActorUnavailable | RanksLost):
            return False
        if isinstance(error, RemoteTimeout) and self.vain:
            return False  # slow rather than lost, so it would be slow again
        return self.vain <= STARTS


@dataclass(frozen=True)
class Watched:
    """An actor to watch, by its method `watch`, which ends only with the process."""

    role: str
    actor: Any
    bring: Callable[[], Awaitable[object]]  # gives a process what it lacks, if anything


async def keep(watched: Iterable[Watched], restarts: Restarts, start_timeout: float) -> None:
    """Bring new processes what they lack, until canceled.

    Args:
        start_timeout: seconds in which a new process must be ready (`cluster.start_timeout`).

    Raises:
        ActorLost: Ray does not replace a process: it was lost more than RESTARTS times, or never is.
        RemoteError: a new process was not ready in time, or what it lacks could not be brought.
    """

    async def keep_one(one: Watched) -> None:
        ended = asyncio.ensure_future(end_of(one.actor, "watch"))
        try:
            with suppress(ActorUnavailable):
                await one.bring()  # it may have been replaced when nobody watched
            while True:
                lost = await ended
                if not isinstance(lost, ActorUnavailable):
                    raise lost
                began = time.monotonic()
                await back(one.actor, timeout=start_timeout)
                ended = asyncio.ensure_future(end_of(one.actor, "watch"))
                with suppress(ActorUnavailable):  # it is lost again
                    await one.bring()
                    restarts.note(one.role, time.monotonic() - began)
        finally:
            ended.cancel()

    keeping = [asyncio.ensure_future(keep_one(one)) for one in watched]
    try:
        await asyncio.gather(*keeping)
    finally:
        for task in keeping:
            task.cancel()
