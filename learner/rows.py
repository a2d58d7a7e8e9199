"""Training rows: token sequences with the positions that bear loss and what each position weighs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hindsight.configs.schema import Credit
from hindsight.learner.credit import advantages
from hindsight.rollout.types import Group, Span, Trajectory
from hindsight.teacher.contexts import scored_span

# (group ordinal, trajectory, turn) -> log-probs of its scored span
Scores = Mapping[tuple[int, int, int], np.ndarray]
# (group ordinal, trajectory) -> of each turn, (n,) advantages of its tokens
Advantages = Mapping[tuple[int, int], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Row:
    """One sequence for the learner. P = number of positions that bear loss."""

    ids: np.ndarray  # (L,) int32
    positions: np.ndarray  # (P,) int32, index in `ids` of each token that bears loss (never 0)
    advantages: np.ndarray  # (P,) float32, A before reweighting; the token's weight for imitation
    rollout_logprobs: np.ndarray  # (P,) float32, from the engine; NaN for imitation
    teacher_logprobs: np.ndarray  # (P,) float32, with hindsight; NaN where the teacher did not score
    reference_logprobs: np.ndarray | None = None  # (P,) float32, of the reference policy; None: not computed
    candidates: np.ndarray | None = None  # (P, k) int32, the student's likeliest tokens, for distillation
    teacher_candidates: np.ndarray | None = None  # (P, k) float32, the teacher's log-probs of those
    values: np.ndarray | None = None  # (P,) float32, V before the position by the critic before its update
    returns: np.ndarray | None = None  # (P,) float32, what V is pulled to


def make_rows(
    groups: Sequence[Group],
    scores: Scores,
    credit: Credit,
    tokens: str = "action",
    reference: Scores | None = None,
    estimated: Advantages | None = None,
) -> list[Row]:
    """One row for each token sequence that holds sampled tokens; a group of zero advantages gives none.

    The advantage of a turn goes to every token it sampled: reasoning, format and action; a critic may give
    each token its own. Teacher log-probs are on the tokens of its `teacher.contexts.scored_span`, and only
    where `scores` has the turn.

    Args:
        tokens: `reweight.tokens`.
        reference: the reference policy's log-probs of whole responses, where it is asked.
        estimated: the advantages by a critic; None compares siblings.

    Raises:
        ValueError: a score does not fit its turn's span, or a sampled token has no log-prob.
    """
    rows = []
    for group in groups:
        per_trajectory: Sequence[Sequence[np.ndarray] | np.ndarray] = (
            advantages(group, credit)
            if estimated is None
            else [estimated[group.ordinal, index] for index in range(len(group.trajectories))]
        )
        if not any(np.any(turn) for values in per_trajectory for turn in values):
            continue
        for index, (trajectory, values) in enumerate(zip(group.trajectories, per_trajectory, strict=True)):
            owner = (group.ordinal, index)
            teacher = _spread(trajectory, owner, scores, tokens)
            frozen = None if reference is None else _spread(trajectory, owner, reference, "response")
            rows += _trajectory_rows(trajectory, values, owner, teacher, frozen)
    return rows


def _trajectory_rows(
    trajectory: Trajectory,
    values: Sequence[np.ndarray] | np.ndarray,
    owner: tuple[int, int],
    teacher: list[np.ndarray],
    reference: list[np.ndarray] | None,
) -> list[Row]:
    """The rows of one trajectory.

    Args:
        values: of each turn, its advantage or (n,) those of its tokens.
        owner: (group ordinal, trajectory).
        teacher, reference: (L,) log-probs of each sequence; NaN where not scored.
    """
    rows = []
    for index, sequence in enumerate(trajectory.sequences):
        advantage = np.full(len(sequence.ids), np.nan, dtype=np.float32)  # NaN: not sampled
        for number, turn in enumerate(trajectory.turns):
            if turn.sequence == index:
                advantage[turn.start : turn.end] = values[number]
        positions = np.flatnonzero(~np.isnan(advantage)).astype(np.int32)
        if len(positions) == 0:
            continue
        rollout = sequence.logprobs[positions].astype(np.float32)
        if np.isnan(rollout).any():
            raise ValueError(
                f"group {owner[0]}, trajectory {owner[1]}: a sampled token has no rollout log-prob"
            )
        rows.append(
            Row(
                ids=sequence.ids,
                positions=positions,
                advantages=advantage[positions],
                rollout_logprobs=rollout,
                teacher_logprobs=teacher[index][positions],
                reference_logprobs=None if reference is None else reference[index][positions],
            )
        )
    return rows


def _spread(trajectory: Trajectory, owner: tuple[int, int], scores: Scores, tokens: str) -> list[np.ndarray]:
    """(L,) float32 per sequence: the scores of each turn at its span, NaN elsewhere."""
    spread = [np.full(len(sequence.ids), np.nan, dtype=np.float32) for sequence in trajectory.sequences]
    for number, turn in enumerate(trajectory.turns):
        key = (*owner, number)
        if key in scores:
            _place(spread[turn.sequence], scored_span(turn, tokens), scores[key], key)
    return spread


def _place(row: np.ndarray, span: Span | None, score: np.ndarray, key: tuple[int, int, int]) -> None:
    """Write one turn's scores at its span."""
    if span is None:
        raise ValueError(f"turn {key} has no action, so nothing of it may be scored")
    if len(score) != len(span):
        raise ValueError(f"turn {key}: {len(score)} scores for a span of {len(span)} tokens")
    row[span.start : span.end] = score
