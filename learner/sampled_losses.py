"""Self-distillation losses on the sampled tokens, which this year's baselines add to GRPO.

Both read the gap Δ = log π_teacher − log π_student of the tokens that were sampled, and weigh little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hindsight.configs.setting import setting
from hindsight.learner.signals import LossOnly

if TYPE_CHECKING:
    import torch

    from hindsight.learner.distill import Likelihoods

DIFFERENCE_BOUND = 20.0  # of log π_teacher − log π_student before exp (the authors' code)
RATIO_BOUND = 10.0  # of log π_student − log π_old before exp (the authors' code)


class Gate(LossOnly):
    """SDAR (arXiv 2605.15155): σ(β·Δ)·(log π_teacher − log π_student), the gate without gradient.

    Its gradient raises every sampled token, more so where the teacher prefers it: at ratio 1 it is that of
    GRPO with A + λ·σ(β·Δ).
    """

    @dataclass(frozen=True)
    class Settings(LossOnly.Settings):
        """Settings of the gated loss."""

        beta: float = setting(5.0, "β: steepness of the gate", low=0.0)

        @property
        def summary(self) -> str:
            return f"loss gated by σ({self.beta:g}·Δ)"

    settings: Gate.Settings

    def loss(self, student: Likelihoods, teacher: Likelihoods, old: torch.Tensor) -> torch.Tensor:
        gap = teacher.tokens - student.tokens
        return (self.settings.beta * gap.detach()).sigmoid() * gap


class SampledKL(LossOnly):
    """Skill-SD as SDAR's authors ported it (arXiv 2604.10674): ρ·(e^Δ − 1 − Δ), with ρ = π_student / π_old.

    The estimate k3 of KL(student ‖ teacher), weighted by an importance ratio that has a gradient. The code of
    Skill-SD's own authors was not found.
    """

    @dataclass(frozen=True)
    class Settings(LossOnly.Settings):
        """Settings of the loss."""

        weight: float = setting(0.001, "λ: weight of the signal's loss", low=0.0)

        @property
        def summary(self) -> str:
            return "loss: k3 on sampled tokens"

    settings: SampledKL.Settings

    def loss(self, student: Likelihoods, teacher: Likelihoods, old: torch.Tensor) -> torch.Tensor:
        gap = teacher.tokens - student.tokens
        ratio = (student.tokens - old).clamp(max=RATIO_BOUND).exp()
        return ratio * (gap.clamp(max=DIFFERENCE_BOUND).exp() - 1.0 - gap)
