"""How far the student's next-token distribution is from that of the teacher, who saw a hint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hindsight.learner.divergence import forward_kl, jsd, reverse_kl, sampled_reverse_kl, with_tail


@dataclass(frozen=True)
class Likelihoods:
    """Log-probs that a model assigns at P tokens."""

    tokens: torch.Tensor  # (P,) float32 log-probs of the sampled tokens
    candidates: torch.Tensor  # (P, k) float32 log-probs of the student's most likely tokens


def distance(student: Likelihoods, teacher: Likelihoods, divergence: str, beta: float) -> torch.Tensor:
    """(P,) divergence of the student's next-token distribution from the teacher's.

    Args:
        student: with gradient. teacher: without.
        divergence: `signal.divergence`; beta: the teacher's weight in the mixture of jsd.
    """
    if divergence == "sampled":
        return sampled_reverse_kl(student.tokens, teacher.tokens)
    own, other = with_tail(student.candidates), with_tail(teacher.candidates)
    if divergence == "reverse":
        return reverse_kl(own, other)
    if divergence == "forward":
        return forward_kl(own, other)
    return jsd(own, other, beta)
