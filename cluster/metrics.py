"""Metrics of a run: metrics.jsonl, which resuming reads, and the trackers."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.cluster.failures import RunError
from hindsight.cluster.report.lines import append_rows, read_rows, write_rows
from hindsight.cluster.report.run_folder import METRICS
from hindsight.cluster.report.timeline import covered
from hindsight.cluster.trackers import Tracker, make_trackers
from hindsight.configs.schema import Tracking
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Group

# Always reported, even if a step asks neither judge nor teacher.
ASKED = (
    "feedback/texts",
    "feedback/asked",
    "feedback/unreadable",
    "feedback/tokens_read",
    "feedback/tokens_written",
    "teacher/spans",
    "teacher/tokens",
    "teacher/span_tokens",
)


class TrackerError(RunError):
    """A tracker failed; the message names it."""


class Metrics:
    """Writes one row per step to metrics.jsonl and to every tracker."""

    def __init__(self, folder: Path, tracker: Tracking | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self._rewrite(self.rows())  # a killed run may have left a partial line
        self._tracking = tracker or Tracking()
        self._trackers: list[Tracker] = []

    def start(self) -> None:
        """Open the trackers, once config.yaml is in the folder."""
        with self._naming("opening the trackers"):
            self._trackers = make_trackers(self._tracking, self.path.parent)

    def write(
        self,
        step: int,
        kind: str,
        values: Mapping[str, float],
        stage: str | None = None,
        panels: Mapping[str, str] | None = None,
    ) -> None:
        """Append one row.

        Args:
            kind: "train", "sft" or "eval".
            values: names are like `rollout/success`.
            stage: of an evaluation.
            panels: of an evaluation, the digest of each by its name.
        """
        row: dict[str, Any] = {"step": step, "kind": kind, "stage": stage, "time": round(time.time(), 3)}
        row |= {"panels": dict(panels)} if panels else {}
        append_rows(self.path, [row | {name: _plain(value) for name, value in values.items()}])
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for tracker in self._trackers:
            with self._naming(type(tracker).__name__):
                tracker.write(step, kind, finite, stage)

    def now(self, values: Mapping[str, float]) -> None:
        """Tell the trackers figures of the moment, which are in no row; all are finite."""
        for tracker in self._trackers:
            with self._naming(type(tracker).__name__):
                tracker.now(values)

    def truncate(self, step: int, evaluated: Collection[tuple[int, str]]) -> None:
        """Drop what a run writes again that resumes after `step`: later rows, and evaluations that are not in
        `evaluated`, by step and stage, of which nothing but the row was saved.
        """

        def stays(row: dict[str, Any]) -> bool:
            if row["kind"] == "sft":
                return True
            known = row["kind"] != "eval" or (row["step"], row["stage"]) in evaluated
            return row["step"] <= step and known

        self._rewrite([row for row in self.rows() if stays(row)])

    def clear(self) -> None:
        """Drop all rows: the run begins again."""
        self._rewrite([])

    def rows(self) -> list[dict[str, Any]]:
        """Every complete row written so far, those before a resume included."""
        return read_rows(self.path)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_rows(self.path, rows)

    def close(self) -> None:
        """Flush all trackers.

        Raises:
            TrackerError: one of them failed.
        """
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.enter_context(self._naming(type(tracker).__name__))
                stack.callback(tracker.close)

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """A block whose errors, of any kind since trackers are open, become a TrackerError."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            raise TrackerError(
                f"{what} failed: {type(error).__name__}: {error}. metrics.jsonl is complete. Repair the "
                "service and continue with resume=auto, or take the tracker out of tracker.names"
            ) from error


def _plain(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def distinct(group: Group) -> float:
    """Share of a group's trajectories whose actions, in order, no trajectory before them has taken."""
    taken = {tuple(turn.action or turn.response for turn in one.turns) for one in group.trajectories}
    return len(taken) / len(group.trajectories)


def step_metrics(
    batch: Sequence[SampleGroup],
    times: Mapping[str, float],
    version: int,
    asynchronous: bool,
    lost: Sequence[SampleGroup] = (),
) -> dict[str, float]:
    """Metrics of a step's rollouts, hints and teacher.

    Args:
        batch: the groups that it trains on; each has a trajectory.
        times: "time/rollout" and "time/step" in seconds; asynchronous rollouts run during the whole step.
        version: of the learner's weights.
        lost: groups that failures kept from training; only their cost counts.
    """
    groups = [one.group for one in batch]
    summed = {name: sum(one.figures.get(name, 0.0) for one in (*batch, *lost)) for name in ASKED}
    summed["failures/retried"] = float(sum(len(one.group.retried) for one in (*batch, *lost)))
    summed["failures/groups_lost"] = float(len(lost))
    worked = {role: [one.times.get(role, []) for one in (*batch, *lost)] for role in ("judge", "teacher")}
    summed["feedback/seconds_busy"] = sum(map(covered, worked["judge"]))
    summed["teacher/seconds_busy"] = sum(end - start for spans in worked["teacher"] for start, end in spans)
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    seconds = times["time/step" if asynchronous else "time/rollout"]
    tokens = sum(turn.end - turn.start for turn in turns)
    lags = version - np.concatenate([one.versions(turn) for one in trajectories for turn in one.turns])
    mixed = [0 < sum(t.success for t in group.trajectories) < len(group.trajectories) for group in groups]
    return summed | {
        "rollout/episodes": float(len(trajectories)),
        "rollout/success": float(np.mean([t.success for t in trajectories])),
        "rollout/reward": float(np.mean([t.reward for t in trajectories])),
        "rollout/turns_per_episode": len(turns) / len(trajectories),
        "rollout/tokens_per_turn": tokens / len(turns),
        "rollout/malformed": float(np.mean([turn.malformed for turn in turns])),
        "rollout/inadmissible": float(np.mean([turn.inadmissible for turn in turns])),
        "rollout/tokens_per_second": tokens / seconds,
        "rollout/episodes_per_second": len(trajectories) / seconds,
        "rollout/turns_per_second": len(turns) / seconds,
        "rollout/staleness": float(lags.max()),
        "rollout/staleness_mean": float(lags.mean()),
        "rollout/mixed_groups": float(np.mean(mixed)),
        "rollout/solved_groups": float(
            np.mean([any(t.success for t in group.trajectories) for group in groups])
        ),
        "rollout/distinct": float(np.mean([distinct(group) for group in groups])),
    }
