"""SERL's token weights: reward gives an update its direction, hindsight only its size (arXiv 2605.19447).

RLSD (arXiv 2604.03128) has the same weights on all tokens of a response: `teacher.contexts.scored_span`.
"""

from __future__ import annotations

import torch

from hindsight.configs.schema import Reweight

GAP_BOUND = 20.0  # log-ratio beyond which exp is not taken (the authors' code)


def strength_at(step: int, reweight: Reweight) -> float:
    """λ_k = λ₀ · max(0, 1 − k/K) after `step` = k finished training steps; K = 0 keeps λ₀."""
    if reweight.decay_steps == 0:
        return reweight.strength
    return reweight.strength * max(0.0, 1.0 - step / reweight.decay_steps)


def raw_weights(advantages: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """exp(sign(A)·Δ) before it is clipped into the trust region; any shape."""
    return torch.exp((torch.sign(advantages) * gap).clamp(-GAP_BOUND, GAP_BOUND))


def reweight(advantages: torch.Tensor, gap: torch.Tensor, strength: float, clip: float) -> torch.Tensor:
    """A' = A·[(1−λ) + λ·w] with w = clip(exp(sign(A)·Δ), 1−ε, 1+ε) (equations 9 and 10); any one shape.

    Args:
        advantages: A of each token.
        gap: Δ = log π_teacher − log π_student of the sampled token, detached; NaN where the teacher did not
            score, and there A' = A to the bit.
        strength: λ in [0, 1]; at 0, A' = A to the bit.
        clip: ε in [0, 1], so that A' never changes sign.
    """
    scored = ~torch.isnan(gap)
    weights = raw_weights(advantages, torch.where(scored, gap, 0.0)).clamp(1.0 - clip, 1.0 + clip)
    return torch.where(scored, advantages * ((1.0 - strength) + strength * weights), advantages)
