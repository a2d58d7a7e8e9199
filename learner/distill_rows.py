"""Rows of distillation: the turns that have hindsight, and what student and teacher think of their tokens.

group, requests ──► plain rows ──(learner: k likeliest tokens)──► requests with candidates
                               ──(teacher: log-probs)───────────► rows
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hindsight.learner.rows import Row
from hindsight.rollout.types import Group
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.scorer import Scored

Owner = tuple[int, int]  # (trajectory, sequence)


def plain_rows(group: Group, requests: Sequence[ScoreRequest]) -> dict[Owner, Row]:
    """A row per sequence that has requests: the positions of their spans in the student's own context."""
    spans: dict[Owner, list[np.ndarray]] = defaultdict(list)
    for request in sorted(requests, key=lambda request: (request.trajectory, request.sequence, request.turn)):
        spans[request.trajectory, request.sequence].append(_positions(group, request))
    return {owner: _row(group, owner, np.concatenate(parts)) for owner, parts in spans.items()}


def with_candidates(
    group: Group, requests: Sequence[ScoreRequest], rows: dict[Owner, Row]
) -> list[ScoreRequest]:
    """The same requests, asking for the candidates that their rows hold as well."""
    asked = []
    for request in requests:
        row = rows[request.trajectory, request.sequence]
        assert row.candidates is not None
        asked.append(replace(request, candidates=row.candidates[_places(group, row, request)]))
    return asked


def distill_rows(
    group: Group, requests: Sequence[ScoreRequest], scores: Sequence[Scored], rows: dict[Owner, Row]
) -> list[Row]:
    """The rows with the teacher's log-probs.

    Args:
        scores: one per request, in order.
        rows: `plain_rows`, with candidates where the distance needs them.
    """
    teacher = {owner: np.full(len(row.positions), np.nan, np.float32) for owner, row in rows.items()}
    widths = {request.candidates.shape[1] for request in requests if request.candidates is not None}
    width = widths.pop() if widths else 0
    others = {owner: np.full((len(row.positions), width), np.nan, np.float32) for owner, row in rows.items()}
    for request, scored in zip(requests, scores, strict=True):
        owner = request.trajectory, request.sequence
        places = _places(group, rows[owner], request)
        teacher[owner][places], others[owner][places] = scored.logprobs, scored.candidates
    return [
        replace(row, teacher_logprobs=teacher[owner], teacher_candidates=others[owner] if width else None)
        for owner, row in rows.items()
    ]


def _positions(group: Group, request: ScoreRequest) -> np.ndarray:
    """Where the request's span lies in its sequence."""
    turn = group.trajectories[request.trajectory].turns[request.turn]
    return np.arange(turn.start, turn.end, dtype=np.int32)


def _places(group: Group, row: Row, request: ScoreRequest) -> np.ndarray:
    """Indices of the request's span among the row's positions."""
    return np.searchsorted(row.positions, _positions(group, request))


def _row(group: Group, owner: Owner, positions: np.ndarray) -> Row:
    sequence = group.trajectories[owner[0]].sequences[owner[1]]
    return Row(
        ids=sequence.ids,
        positions=positions,
        advantages=np.zeros(len(positions), np.float32),
        rollout_logprobs=sequence.logprobs[positions].astype(np.float32),
        teacher_logprobs=np.full(len(positions), np.nan, np.float32),
    )
