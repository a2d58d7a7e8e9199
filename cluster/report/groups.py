"""A training step's groups without loss, from which `hindsight replay` trains again. Pure.

What can be rebuilt from the rest of a row is left out: log-probs are those of the sampled tokens, and a
turn's result has no observation where it is the next turn's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import numpy as np

from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Failure, Group, Served, Span, TokenSequence, Trajectory, Turn

FORMAT = 1  # raised when a reader of the version before would misread a row
Row = dict[str, Any]


class GroupError(ValueError):
    """A row is not a group of this version."""


@dataclass(frozen=True)
class Recorded:
    """A group, and the version of the learner's weights before the step that trained on it."""

    group: Group
    version: int


def group_row(one: SampleGroup) -> Row:
    """A group of a finished step; `lags` must be known."""
    group, [sample, *_] = one.group, one.samples
    return {
        "format": FORMAT,
        "version": int(sample.column("lags")[0] + sample.column("versions")[0]),
        "ordinal": group.ordinal,
        "task": asdict(group.task),
        "reference": list(group.reference),
        "failures": [asdict(failure) for failure in group.failures],
        "retried": [asdict(failure) for failure in group.retried],
        "trajectories": list(map(_trajectory_row, group.trajectories)),
    }


def read_group(row: Mapping[str, Any]) -> Recorded:
    """What `group_row` was made of. Observations of an environment's own class become plain ones.

    Raises:
        GroupError: the row is of another version, or not complete.
    """
    if row.get("format") != FORMAT:
        raise GroupError(f"format {row.get('format')!r}, and this version of Hindsight reads {FORMAT}")
    try:
        task = TaskSpec(**row["task"])
        group = Group(
            row["ordinal"],
            task,
            tuple(_trajectory(one, task) for one in row["trajectories"]),
            tuple(Failure(**one) for one in row["failures"]),
            tuple(Failure(**one) for one in row["retried"]),
            tuple(row["reference"]),
        )
        return Recorded(group, row["version"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GroupError(f"not a complete group: {type(error).__name__}: {error}") from error


def _trajectory_row(trajectory: Trajectory) -> Row:
    turns = trajectory.turns
    following = [turn.observation for turn in turns[1:]]
    return {
        **{name: getattr(trajectory, name) for name in ("success", "reward", "ended", "preamble")},
        "served": trajectory.served and asdict(trajectory.served),
        "sequences": [sequence.ids.tolist() for sequence in trajectory.sequences],
        "turns": [
            _turn_row(trajectory, turn, seen) for turn, seen in zip(turns, [*following, None], strict=True)
        ],
    }


def _turn_row(trajectory: Trajectory, turn: Turn, following: Observation | None) -> Row:
    sequence, result = trajectory.sequences[turn.sequence], turn.result
    told = {} if result.observation == following else {"observation": _sparse(result.observation)}
    names = ("feedback", "reward", "terminated", "truncated", "success")
    span = turn.action_span
    return {
        **{name: getattr(turn, name) for name in ("sequence", "start", "end", "response", "action", "valid")},
        "action_span": span and [span.start, span.end],
        "observation": _sparse(turn.observation),
        "result": {**{name: getattr(result, name) for name in names}, "info": dict(result.info), **told},
        # 9 digits tell any two float32 apart
        "logprobs": [float(f"{one:.9g}") for one in sequence.logprobs[turn.start : turn.end].tolist()],
        "versions": trajectory.versions(turn).tolist(),
    }


def _trajectory(row: Row, task: TaskSpec) -> Trajectory:
    ids = [np.array(own, np.int32) for own in row["sequences"]]
    logprobs = [np.full(len(own), np.nan, np.float32) for own in ids]
    versions = [np.full(len(own), -1, np.int32) for own in ids]
    for turn in row["turns"]:
        logprobs[turn["sequence"]][turn["start"] : turn["end"]] = turn["logprobs"]
        versions[turn["sequence"]][turn["start"] : turn["end"]] = turn["versions"]
    return Trajectory(
        task,
        tuple(map(TokenSequence, ids, logprobs, versions)),
        tuple(_turns(row["turns"])),
        **{name: row[name] for name in ("success", "reward", "ended", "preamble")},
        served=row["served"] and _served(row["served"]),
    )


def _served(row: Row) -> Served:
    return Served(**{**row, "turns": tuple(map(tuple, row["turns"]))})


def _turns(rows: Sequence[Row]) -> list[Turn]:
    seen = [_observation(row["observation"]) for row in rows]
    made = []
    for number, row in enumerate(rows):
        told = row["result"].get("observation")
        result = {
            **row["result"],
            "observation": seen[number + 1] if told is None else _observation(told),
        }
        own = {name: row[name] for name in ("sequence", "start", "end", "response", "action", "valid")}
        span = row["action_span"]
        made.append(
            Turn(
                **own,
                action_span=None if span is None else Span(*span),
                observation=seen[number],
                result=StepResult(**result),
            )
        )
    return made


def _sparse(observation: Observation) -> Row:
    """The fields that differ from their defaults."""
    return {
        one.name: value
        for one in fields(Observation)
        if (value := getattr(observation, one.name)) != one.default or one.default is MISSING
    }


def _observation(row: Row) -> Observation:
    tuples: dict[str, Any] = {name: tuple(row[name]) for name in ("actions", "tools") if name in row}
    return Observation(**{**row, **tuples})
