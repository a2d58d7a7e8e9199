"""Teacher contexts: the student's own tokens behind a prompt that holds hindsight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rollout.types import Span


@dataclass(frozen=True)
class ScoreRequest:
    """One action span to score. The context is `sequence.ids[:cut]` followed by `tail`.

    Requests of one trajectory share prefixes, so a scorer computes a sequence once and branches at each `cut`.
    """

    trajectory: int  # index in the group
    turn: int  # index in the trajectory
    sequence: int  # index in the trajectory's sequences
    cut: int  # tokens taken from the front of that sequence
    tail: np.ndarray  # (T,) int32: hindsight section, end of the user message, the response up to the span's end
    span: Span  # positions in `tail` whose log-probs are wanted
