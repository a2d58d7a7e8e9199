"""When each role worked: `timeline.jsonl`, one line per span, in seconds since the epoch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hindsight.cluster.report.lines import append_rows, read_rows, write_rows
from hindsight.cluster.report.run_folder import TIMELINE
from hindsight.learner.samples import SampleGroup

Role = Literal[
    "rollout",
    "teacher",
    "judge",
    "reference",
    "critic",
    "learner",
    "weight_sync",
    "evaluation",
    "checkpoint",
    "engine",
]


class Timeline:
    """Appends spans to the file as they end."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / TIMELINE

    @contextmanager
    def span(self, step: int, role: Role, name: str) -> Iterator[None]:
        """Note the block as a span, unless it raises."""
        start = time.time()
        yield
        append_rows(self.file, [_row(step, role, name, start, time.time())])

    def groups(self, step: int, groups: Iterable[SampleGroup]) -> None:
        """Note what was done for groups that a step has taken, and which engines had their episodes."""
        rows = []
        for one in groups:
            name = f"group {one.group.ordinal}"
            rows += [_row(step, role, name, *span) for role, spans in one.times.items() for span in spans]
            on_engines = filter(None, (trajectory.served for trajectory in one.group.trajectories))
            rows += [_row(step, "engine", f"engine {on.engine}", on.start, on.end) for on in on_engines]
        append_rows(self.file, rows)

    def truncate(self, step: int) -> None:
        """Drop the spans of later steps, and what a killed run has left of a line."""
        if self.file.exists():
            write_rows(self.file, [row for row in read_rows(self.file) if row["step"] <= step])


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans lies."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _row(step: int, role: str, name: str, start: float, end: float) -> dict[str, object]:
    return {"step": step, "role": role, "name": name, "start": round(start, 3), "end": round(end, 3)}
