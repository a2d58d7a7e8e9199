"""Divergences of the student's next-token distribution from the teacher's, which distillation minimizes.

P positions, V entries of a distribution: the whole vocabulary, or the student's k likeliest tokens and behind
them one bucket for all the rest (`with_tail`). All in log-probs. Gradients flow into the student only.
"""

from __future__ import annotations

import torch

LEAST_TAIL = 1e-7  # float32 cannot resolve a smaller rest of the vocabulary


def with_tail(logprobs: torch.Tensor) -> torch.Tensor:
    """(P, k) log-probs of some tokens -> (P, k + 1): the last entry holds all other tokens together."""
    kept = logprobs.logsumexp(dim=-1, keepdim=True).exp()
    return torch.cat([logprobs, (1.0 - kept).clamp(min=LEAST_TAIL).log()], dim=-1)


def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first ‖ second) of (P, V) log-probs, (P,). An entry of probability 0 in `first` adds nothing."""
    ratio = torch.where(first == -torch.inf, 0.0, first - second)
    return (first.exp() * ratio).sum(dim=-1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student ‖ teacher), (P,): HINT-SD (arXiv 2605.17873), SDPO's α = 1 (arXiv 2601.20802)."""
    return kl(student, teacher.detach())


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student), (P,): SDPO's α = 0."""
    return kl(teacher.detach(), student)


def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """(1−β)·KL(p‖m) + β·KL(q‖m) with m = (1−β)·p + β·q, p the student and q the teacher, (P,); 0 < β < 1.

    HERO (arXiv 2606.11559) and OPSD (arXiv 2601.18734) with β = ½, where it is symmetric and at most log 2.
    """
    teacher = teacher.detach()
    weights = torch.tensor([1.0 - beta, beta], dtype=student.dtype, device=student.device).log()
    mixture = torch.logsumexp(torch.stack([student + weights[0], teacher + weights[1]]), dim=0)
    return (1.0 - beta) * kl(student, mixture) + beta * kl(teacher, mixture)


def sampled_reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """sg(log π_S − log π_T)·log π_S of the sampled tokens alone, all (P,).

    Its gradient is an unbiased estimate of that of `reverse_kl` if the student sampled the tokens:
    only the value differs. Without the stop-gradient around the difference the teacher would drop out.
    """
    return (student - teacher).detach() * student
