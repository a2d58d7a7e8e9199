"""Self-distillation: pull the student's next-token distribution to that of a teacher who saw hindsight.

HERO (arXiv 2606.11559), HINT-SD (2605.17873), SDPO (2601.20802) and OPSD (2601.18734) differ
in what the teacher sees, on which turns, in the distance and in the teacher's weights: all settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hindsight.configs.schema import Distill
from hindsight.learner.divergence import forward_kl, jsd, reverse_kl, sampled_reverse_kl, with_tail
from hindsight.learner.losses import importance


@dataclass(frozen=True)
class Likelihoods:
    """What a model gives to P tokens."""

    tokens: torch.Tensor  # (P,) float32 log-probs of the sampled tokens
    candidates: torch.Tensor  # (P, k) float32 log-probs of the student's likeliest ones


def distill(
    student: Likelihoods, teacher: Likelihoods, old: torch.Tensor, settings: Distill
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum over tokens of the distance between student and teacher, and the sums of its statistics.

    Each token's distance is multiplied by the detached min(π_θ / π_old, cap), which is 1 in the first
    optimizer step of an update (SDPO).

    Args:
        student: with gradient. teacher: without.
        old: (P,) log-probs before this update's first optimizer step.
    """
    gap = teacher.tokens - student.tokens.detach()
    distance = _distance(student, teacher, settings)
    weights = importance(student.tokens.detach(), old, settings.tis_cap)
    total = (weights * distance).sum()
    return total, {
        "loss": float(total.detach()),
        "distance": float(distance.detach().sum()),
        "gap": float(gap.sum()),
    }


def _distance(student: Likelihoods, teacher: Likelihoods, settings: Distill) -> torch.Tensor:
    """(P,)"""
    if settings.divergence == "sampled":
        return sampled_reverse_kl(student.tokens, teacher.tokens)
    own, other = with_tail(student.candidates), with_tail(teacher.candidates)
    if settings.divergence == "reverse":
        return reverse_kl(own, other)
    if settings.divergence == "forward":
        return forward_kl(own, other)
    return jsd(own, other, settings.beta)
