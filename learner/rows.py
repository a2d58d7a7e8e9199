"""Training rows: token sequences with the positions that bear loss and what each position weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Credit
from learner.credit import advantages
from rollout.types import Group, Trajectory, Turn

Scores = Mapping[
    tuple[int, int, int], np.ndarray
]  # (group ordinal, trajectory, turn) -> log-probs of its action


@dataclass(frozen=True)
class Row:
    """One sequence for the learner. P = number of positions that bear loss."""

    ids: np.ndarray  # (L,) int32
    positions: np.ndarray  # (P,) int32, index in `ids` of each token that bears loss (never 0)
    advantages: np.ndarray  # (P,) float32, A before reweighting; the token's weight for imitation
    rollout_logprobs: np.ndarray  # (P,) float32, from the engine; NaN for imitation
    teacher_logprobs: (
        np.ndarray
    )  # (P,) float32, log-prob under the teacher's context; NaN where it did not score


def make_rows(groups: Sequence[Group], scores: Scores, credit: Credit) -> list[Row]:
    """One row for each token sequence that holds sampled tokens; a group of zero advantages gives none.

    The advantage of a turn goes to every token it sampled: reasoning, format and action. Only the action's
    tokens carry teacher log-probs, and only where `scores` has the turn.

    Raises:
        ValueError: a score does not fit its turn's action, or a sampled token has no log-prob.
    """
    rows = []
    for group in groups:
        per_trajectory = advantages(group, credit)
        if not any(values.any() for values in per_trajectory):
            continue
        for index, (trajectory, values) in enumerate(zip(group.trajectories, per_trajectory, strict=True)):
            rows += _trajectory_rows(trajectory, values, (group.ordinal, index), scores)
    return rows


def _trajectory_rows(
    trajectory: Trajectory, values: np.ndarray, owner: tuple[int, int], scores: Scores
) -> list[Row]:
    """The rows of one trajectory. `values`: (T,) advantages; `owner`: (group ordinal, trajectory)."""
    rows = []
    for index, sequence in enumerate(trajectory.sequences):
        advantage = np.full(len(sequence.ids), np.nan, dtype=np.float32)  # NaN: not sampled
        teacher = np.full(len(sequence.ids), np.nan, dtype=np.float32)
        for number, turn in enumerate(trajectory.turns):
            if turn.sequence != index:
                continue
            advantage[turn.start : turn.end] = values[number]
            key = (*owner, number)
            if key in scores:
                _place(teacher, turn, scores[key], key)
        positions = np.flatnonzero(~np.isnan(advantage)).astype(np.int32)
        if len(positions) == 0:
            continue
        rollout = sequence.logprobs[positions].astype(np.float32)
        if np.isnan(rollout).any():
            raise ValueError(
                f"group {owner[0]}, trajectory {owner[1]}: a sampled token has no rollout log-prob"
            )
        rows.append(Row(sequence.ids, positions, advantage[positions], rollout, teacher[positions]))
    return rows


def _place(teacher: np.ndarray, turn: Turn, score: np.ndarray, key: tuple[int, int, int]) -> None:
    """Write one action's teacher log-probs at its positions."""
    if turn.action_span is None:
        raise ValueError(f"turn {key} has no action, so nothing of it may be scored")
    if len(score) != len(turn.action_span):
        raise ValueError(f"turn {key}: {len(score)} scores for an action of {len(turn.action_span)} tokens")
    teacher[turn.action_span.start : turn.action_span.end] = score
