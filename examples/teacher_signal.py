"""A teacher signal: add the teacher's log-ratio to the advantage of each token it scored.

hindsight train nano signal.name=teacher_signal.py signal.scale=0.2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hindsight.configs.method import Signal
from hindsight.configs.setting import setting
from hindsight.learner.signals import TeacherSignal


class Example(TeacherSignal):
    """A' = A + scale · clip(Δ, −1, 1), where Δ is the teacher's log-prob minus the student's."""

    @dataclass(frozen=True)
    class Settings(Signal):
        """The section `signal`, extended."""

        scale: float = setting(0.1, "weight of the teacher's log-ratio", low=0.0)

    settings: Example.Settings

    def strength(self, step: int) -> float:
        return self.settings.scale

    def shape(self, advantages: torch.Tensor, gap: torch.Tensor, strength: float) -> torch.Tensor:
        return advantages + strength * torch.nan_to_num(gap, nan=0.0).clamp(-1.0, 1.0)
