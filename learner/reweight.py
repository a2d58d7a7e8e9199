"""SERL's token weights: reward gives an update its direction, hints only its size (arXiv 2605.19447).

RLSD (arXiv 2604.03128) applies the same weights to all tokens of a response.
"""

from __future__ import annotations

import torch

GAP_BOUND = 20.0  # log-ratio beyond which exp is not taken (the authors' code)


def strength_at(step: int, strength: float, decay_steps: int) -> float:
    """λ_k = λ₀ · max(0, 1 − k/K) after `step` = k finished training steps; K = 0 keeps λ₀."""
    return strength * max(0.0, 1.0 - step / decay_steps) if decay_steps else strength


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
