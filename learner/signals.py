"""How the teacher's log-probs change the update: they reweight the policy loss or add a loss.

A teacher signal scales the advantages, token by token (`shape`) or when a group is scored (`shape_group`), or
adds a loss (`loss`). To add one, extend `TeacherSignal`; nothing here has to change.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hindsight.configs.method import Signal
from hindsight.configs.registry import TEACHER_SIGNALS
from hindsight.configs.schema import Config
from hindsight.configs.setting import setting

if TYPE_CHECKING:  # the configuration loads this module, and torch takes seconds to import
    import torch

    from hindsight.learner.distill import Likelihoods
    from hindsight.learner.samples import SampleGroup


class TeacherSignal:
    """A use of the teacher's log-probs; this one leaves the advantages as they are."""

    Settings: ClassVar[type[Signal]] = Signal
    settings: Signal

    def __init__(self, settings: Signal) -> None:
        self.settings = settings

    def strength(self, step: int) -> float:
        """λ after `step` finished training steps; at 0 no teacher is asked for `shape`."""
        return 1.0

    @property
    def compares(self) -> bool:
        """Whether it teaches nothing in a group whose advantages are all 0."""
        return self.settings.loss_weight == 0

    @property
    def num_candidates(self) -> int:
        """How many of the student's most likely tokens `loss` compares at each position; 0: none."""
        return 0

    def shape(self, advantages: torch.Tensor, gap: torch.Tensor, strength: float) -> torch.Tensor:
        """The advantages that the policy loss uses.

        Args:
            advantages: (P,) A of each sampled token.
            gap: (P,) Δ = log π_teacher − log π_student, detached; NaN where the teacher did not score.
            strength: λ of this step.
        """
        return advantages

    def shape_group(self, group: SampleGroup, strength: float) -> None:
        """Write the column `shaped`, advantages that depend on more than one token, if this signal has any.

        The driver calls it when a group is trained, once all its teacher log-probs are known.
        """

    def weights(self, advantages: torch.Tensor, gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,) weights of scored tokens, and (P,) the same before they were clipped, to report them."""
        import torch

        return torch.ones_like(advantages), torch.ones_like(advantages)

    def loss(self, student: Likelihoods, teacher: Likelihoods, old: torch.Tensor) -> torch.Tensor:
        """(P,) loss of each token of the turns that have a hint, if `settings.loss_weight` > 0.

        Args:
            student: with gradient. teacher: without.
            old: (P,) log-probs of the sampled tokens before this update's first optimizer step.
        """
        raise NotImplementedError(f"{type(self).__name__} has a loss_weight and no loss")


class NoSignal(TeacherSignal):
    """The entry `none`: the teacher is not asked."""

    def strength(self, step: int) -> float:
        return 0.0


class Shaping(TeacherSignal):
    """Base class of signals that change advantages and have no loss."""

    @dataclass(frozen=True)
    class Settings(Signal):
        """No additional settings."""

        strength: float = setting(0.5, "λ; 0 turns the signal off", low=0.0, high=1.0)

        @property
        def asks_teacher(self) -> bool:
            return self.strength > 0

    settings: Shaping.Settings

    def strength(self, step: int) -> float:
        return self.settings.strength


class LossOnly(TeacherSignal):
    """Base class of signals that have a loss and leave advantages alone."""

    @dataclass(frozen=True)
    class Settings(Signal):
        """No additional settings."""

        tokens: Literal["action", "response"] = setting("response", "tokens of a turn that have the loss")
        weight: float = setting(0.01, "λ: weight of the signal's loss", low=0.0)

        @property
        def loss_weight(self) -> float:
            return self.weight

        @property
        def asks_teacher(self) -> bool:
            return self.weight > 0

    settings: LossOnly.Settings

    def strength(self, step: int) -> float:
        return 0.0


class Reweight(Shaping):
    """SERL (arXiv 2605.19447) and RLSD (2604.03128): the teacher scales each token's advantage."""

    @dataclass(frozen=True)
    class Settings(Shaping.Settings):
        """Settings of `A' = A·[(1−λ) + λ·clip(exp(sign(A)·Δ), 1−ε, 1+ε)]`."""

        strength: float = setting(0.5, "λ at step 0; 0 turns the signal off", low=0.0, high=1.0)
        decay_steps: int = setting(50, "steps over which λ falls linearly to 0; 0 keeps it constant", low=0)
        clip: float = setting(0.2, "ε: token weights stay within [1−ε, 1+ε]", low=0.0, high=1.0)

        @property
        def summary(self) -> str:
            return f"weight of {self.tokens} tokens"

    settings: Reweight.Settings

    def strength(self, step: int) -> float:
        from hindsight.learner.reweight import strength_at

        return strength_at(step, self.settings.strength, self.settings.decay_steps)

    def shape(self, advantages: torch.Tensor, gap: torch.Tensor, strength: float) -> torch.Tensor:
        from hindsight.learner.reweight import reweight

        return reweight(advantages, gap, strength, self.settings.clip)

    def weights(self, advantages: torch.Tensor, gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from hindsight.learner.reweight import raw_weights

        raw, clip = raw_weights(advantages, gap), self.settings.clip
        return raw.clamp(1.0 - clip, 1.0 + clip), raw


class GroupShaping(Shaping):
    """Base class of signals that the driver computes for a whole group, from the engine's log-probs."""

    @dataclass(frozen=True)
    class Settings(Shaping.Settings):
        """No additional settings."""

        tokens: Literal["action", "response"] = setting(
            "response", "tokens of a turn that the teacher scores"
        )

        def problems(self, config: Config) -> Iterator[str]:
            yield from super().problems(config)
            if config.credit.critic:
                yield (
                    f"signal.name = {self.name} changes advantages before a critic's are known: use "
                    "credit.advantage=grpo, rloo, gigpo or hgpo"
                )

    @abstractmethod
    def shape_group(self, group: SampleGroup, strength: float) -> None: ...


class Shift(GroupShaping):
    """OPID (arXiv 2606.26790): A' = A + λ·Δ. A group whose returns are equal learns from Δ alone."""

    @dataclass(frozen=True)
    class Settings(GroupShaping.Settings):
        """Settings of the shift."""

        strength: float = setting(0.001, "λ: weight of the teacher's log-ratio", low=0.0)

        @property
        def summary(self) -> str:
            return f"advantage + {self.strength:g}·Δ"

    @property
    def compares(self) -> bool:
        return False

    def shape_group(self, group: SampleGroup, strength: float) -> None:
        for sample in group.samples:
            if sample.teacher_logprobs is not None:
                gap = sample.teacher_logprobs - sample.column("rollout_logprobs")
                shift = np.nan_to_num(strength * gap, nan=0.0).astype(np.float32)
                sample.shaped = sample.column("advantages") + shift


class Distill(LossOnly):
    """Self-distillation: pull the student's next-token distribution to the teacher's.

    HERO (arXiv 2606.11559), HINT-SD (2605.17873), SDPO (2601.20802) and OPSD (2601.18734) differ in what the
    teacher sees, on which turns, in the divergence and in the teacher's weights: all settings.
    """

    @dataclass(frozen=True)
    class Settings(LossOnly.Settings):
        """Settings of the distillation loss."""

        temperature: ClassVar[float | None] = 1.0

        tokens: Literal["action", "response"] = setting(
            "response", "tokens of a turn that are distilled: always all that was sampled"
        )
        weight: float = setting(1.0, "weight of the distillation loss", low=0.0)
        divergence: Literal["jsd", "reverse", "forward", "sampled"] = setting(
            "jsd", "divergence of the next-token distributions; sampled compares the sampled tokens only"
        )
        beta: float = setting(0.5, "jsd: weight of the teacher in the mixture", low=0.01, high=0.99)
        top_k: int = setting(
            100, "the student's most likely tokens that are compared; one bucket holds the rest", low=1
        )
        tis_cap: float = setting(
            2.0,
            "cap of the importance ratio to the policy at the start of the step; 0 turns it off",
            low=0.0,
        )

        @property
        def by_token(self) -> bool:
            return self.divergence == "sampled"

        @property
        def summary(self) -> str:
            names = {"jsd": f"JSD, β = {self.beta:g}", "reverse": "reverse KL", "forward": "forward KL"}
            return f"distill: {names.get(self.divergence, 'reverse KL on sampled tokens')}"

        def problems(self, config: Config) -> Iterator[str]:
            yield from super().problems(config)
            if self.tokens == "action":
                yield "signal.tokens = action: distillation needs whole responses, set signal.tokens=response"

    settings: Distill.Settings

    @property
    def num_candidates(self) -> int:
        return 0 if self.settings.divergence == "sampled" else self.settings.top_k

    def loss(self, student: Likelihoods, teacher: Likelihoods, old: torch.Tensor) -> torch.Tensor:
        from hindsight.learner.distill import distance
        from hindsight.learner.losses import importance

        apart = distance(student, teacher, self.settings.divergence, self.settings.beta)
        return importance(student.tokens.detach(), old, self.settings.tis_cap) * apart


def make_signal(settings: Signal) -> TeacherSignal:
    """The teacher signal that `signal.name` names."""
    kind: type[TeacherSignal] = TEACHER_SIGNALS.find(settings.name)
    return kind(TEACHER_SIGNALS.complete(settings))
