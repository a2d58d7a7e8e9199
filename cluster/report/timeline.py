"""When each role worked: `timeline.jsonl`, one line per span, in seconds since the epoch."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hindsight.cluster.report.lines import Row, append_rows, read_rows, write_rows
from hindsight.cluster.report.run_folder import TIMELINE
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Trajectory

TimelineRole = Literal[
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
    def span(self, step: int, role: TimelineRole, name: str) -> Iterator[None]:
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
            rows += _episodes(step, one.group.trajectories, {"group": one.group.ordinal})
        append_rows(self.file, rows)

    def evaluation(self, step: int, stage: str, trajectories: Iterable[Trajectory]) -> None:
        """Note which engines had the episodes of an evaluation."""
        append_rows(self.file, _episodes(step, trajectories, {"stage": stage}))

    def truncate(self, step: int, evaluated: Collection[tuple[int, str]] = ()) -> None:
        """Drop the spans of later steps, evaluations but these, and what a killed run has left of a line.

        Args:
            evaluated: step and stage of the evaluations that stay.
        """

        def stays(row: dict[str, Any]) -> bool:
            stage = row["name"] if row.get("role") == "evaluation" else row.get("stage")
            return row["step"] <= step and (stage is None or (row["step"], stage) in evaluated)

        if self.file.exists():
            write_rows(self.file, filter(stays, read_rows(self.file)))


def _episodes(step: int, trajectories: Iterable[Trajectory], more: Row) -> Iterator[Row]:
    for on in filter(None, (trajectory.served for trajectory in trajectories)):
        row = _row(step, "engine", f"engine {on.engine}", on.start, on.end)
        yield {**row, **more, "slot": [on.shard, on.slot], "turns": on.turns}


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans lies."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _row(step: int, role: str, name: str, start: float, end: float) -> Row:
    return {"step": step, "role": role, "name": name, "start": round(start, 3), "end": round(end, 3)}
