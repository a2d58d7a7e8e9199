"""What a run is doing, since when, and how long it will take. No terminal and no files: only a clock.

starting ──► evaluation ──► warm start ──► evaluation ──► RL ──► evaluation
                                                          └─ evaluations inside it
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hindsight.cluster.report.text import duration

RECENT = 10  # steps whose median is the pace: the first ones compile, and rollouts become shorter or longer


@dataclass
class Phase:
    """A part of the run with a clock of its own."""

    name: str
    since: float  # when it began
    total: int | None = None  # None: unknown
    done: int = 0
    first: int = 0  # done when it began, by the run that is resumed
    inside: float = 0.0  # seconds of the phases inside it, which have ended

    def own(self, now: float) -> float:
        """Seconds that it took itself until `now`, when no phase inside it runs."""
        return now - self.since - self.inside

    def left(self, now: float) -> float | None:
        """Seconds that it will still take at its pace so far; None: nothing is known yet."""
        if self.total is None or self.done <= self.first:
            return None
        return self.own(now) / (self.done - self.first) * (self.total - self.done)


@dataclass(frozen=True)
class Forecast:
    """How long the rest of a run will take: its steps, and its evaluations."""

    steps: int
    step: float  # seconds of one
    evaluations: int
    evaluation: float  # seconds of one

    @property
    def seconds(self) -> float:
        """Seconds left in all."""
        return self.steps * self.step + self.evaluations * self.evaluation

    def __str__(self) -> str:
        parts = [
            f"{number} {what}{'' if number == 1 else 's'} of {duration(each)}"
            for number, what, each in (
                (self.steps, "step", self.step),
                (self.evaluations, "evaluation", self.evaluation),
            )
            if number
        ]
        return f"about {duration(self.seconds)} left ({', '.join(parts)})" if parts else "no step is left"


def evaluations_left(step: int, steps: int, every: int) -> int:
    """Evaluations that follow when step `step` has just ended: one every `every` steps, and the last."""
    during = sum(one % every == 0 for one in range(max(1, step), steps)) if every else 0
    return during + 1


class Progress:
    """The phases that run, innermost last; the current activity; what a start waits for; the outlook.

    Another thread may read `clocks`, `phase`, `status` and plain attributes while this one writes.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.phases: list[Phase] = []
        self.doing = "starting"
        self.since = clock()  # when that began
        self.done: int = 0
        self.total: int | None = None
        # What starts -> what it does, and since when it starts.
        self.waits: dict[str, tuple[str | Callable[[], str], float]] = {}
        self.in_flight = 0  # episodes
        self.finished = 0  # episodes since the last step ended
        self.step, self.steps = 0, 0
        self.ends: float | None = None  # when the run is expected to end
        self.engines: list[dict[str, float]] = []  # what each did lately (`live.moment`)
        self.outcome: str | None = None  # None: it is running
        self._paces: deque[float] = deque(maxlen=RECENT)  # seconds of each of the last steps
        self._before = 0.0  # own seconds of the phase when the last step ended

    @property
    def phase(self) -> Phase | None:
        """The innermost phase."""
        phases = self.phases
        return phases[-1] if phases else None

    def clocks(self) -> list[tuple[Phase, float]]:
        """The phases that run, and where the clock of each stands: now, or where an inner one began."""
        phases = self.phases
        ends = [*(inner.since for inner in phases[1:]), self.clock()]
        return list(zip(phases, ends, strict=True)) if phases else []

    def begin(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Start a phase; those before it have ended."""
        self.phases = [Phase(name, self.clock(), total, done, done)]
        self.ends, self._before = None, 0.0
        self._paces.clear()
        self.now(name)

    @contextmanager
    def within(self, name: str, total: int | None = None) -> Iterator[None]:
        """A phase inside the current one, whose own clock stands still meanwhile."""
        inner = Phase(name, self.clock(), total)
        outer = list(self.phases)
        self.phases = [*outer, inner]
        self.now(name)
        try:
            yield
        finally:
            self.phases = outer
            if outer:
                outer[-1].inside += self.clock() - inner.since
                self.now(outer[-1].name)

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Note the current activity; its clock starts when it changes."""
        if doing != self.doing:
            self.doing, self.since = doing, self.clock()
        self.done, self.total = done, total

    def advance(self, done: int, total: int | None = None) -> None:
        """Note how much of the innermost phase is done."""
        if self.phase is not None:
            self.phase.done, self.phase.total = done, total if total is not None else self.phase.total

    def stepped(self, step: int, steps: int, evaluations: int, evaluation: float) -> Forecast:
        """Note a finished step; return the outlook.

        Args:
            evaluations: that follow. evaluation: seconds that each is expected to take.
        """
        now, phase = self.clock(), self.phase
        self.advance(step, steps)
        self.step, self.steps, self.finished = step, steps, 0
        if phase is not None:
            self._paces.append(phase.own(now) - self._before)
            self._before = phase.own(now)
        pace = statistics.median(self._paces) if self._paces else 0.0
        forecast = Forecast(steps - step, pace, evaluations, evaluation)
        self.ends = now + forecast.seconds
        return forecast

    def waiting(self) -> list[tuple[str, str, float]]:
        """What starts, what it does now, and since when it starts."""
        waits = list(self.waits.items())
        return [(what, does if isinstance(does, str) else does(), since) for what, (does, since) in waits]

    @contextmanager
    def starting(self, what: str, does: str | Callable[[], str]) -> Iterator[Callable[[], str]]:
        """A part of the start that may overlap with others. Yields a function that says how long it took."""
        self.waits[what] = does, self.clock()

        def took() -> str:
            others = ", ".join(one for one in self.waits if one != what)
            seconds = duration(self.clock() - self.waits[what][1])
            return f"{what}: ready after {seconds}" + (f"; still starting: {others}" if others else "")

        try:
            yield took
        finally:
            del self.waits[what]

    @contextmanager
    def playing(self, episodes: int) -> Iterator[None]:
        """These episodes are in flight meanwhile."""
        self.in_flight += episodes
        try:
            yield
            self.finished += episodes
        finally:
            self.in_flight -= episodes

    def status(self) -> dict[str, Any]:
        """The content of status.json. Times are seconds since the epoch."""
        phase = self.phase
        return {
            "time": self.clock(),
            "process": os.getpid(),
            "host": socket.gethostname(),
            "outcome": self.outcome,
            "phase": phase and phase.name,
            "phase_since": phase and phase.since,
            "phase_done": phase and phase.done,
            "phase_total": phase and phase.total,
            "doing": self.doing,
            "since": self.since,
            "done": self.done,
            "total": self.total,
            "step": self.step,
            "steps": self.steps,
            "ends": self.ends,
            "episodes": {"in_flight": self.in_flight, "finished": self.finished},
            "engines": [dict(engine) for engine in self.engines],
            "starting": {what: {"does": does, "since": since} for what, does, since in self.waiting()},
        }
