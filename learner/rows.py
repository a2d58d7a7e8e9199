"""Training rows: token sequences with the positions that bear loss and what each position weighs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One sequence for the learner. P = number of positions that bear loss."""

    ids: np.ndarray  # (L,) int32
    positions: np.ndarray  # (P,) int32, index in `ids` of each token that bears loss (never 0)
    advantages: np.ndarray  # (P,) float32, A before reweighting; ones for imitation
    rollout_logprobs: np.ndarray  # (P,) float32, from the engine; NaN for imitation
    teacher_logprobs: np.ndarray  # (P,) float32, log-prob under the teacher's context; NaN where it did not score
