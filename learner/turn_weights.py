"""Teacher signals that weigh whole turns. Pure NumPy; the driver computes them once a group is scored.

Δ is the teacher's log-prob of a sampled token minus the engine's. A turn's factor multiplies the advantages
of all its tokens; a turn without scored tokens keeps its advantages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hindsight.configs.setting import setting
from hindsight.learner.signals import GroupShaping

if TYPE_CHECKING:
    from hindsight.learner.samples import SampleGroup, TrainingSample

LEAST_RATE = 1e-4  # a group's success rate stays within [1e-4, 1 − 1e-4] (AgentOPSD's code)
LEAST_BELIEF = 1e-6  # and so do the beliefs after it
LEAST_MEAN = 1e-6  # added to the mean that GRSD divides by
LEAST_FACTOR = 0.1  # GRSD: no advantage changes its sign
EXPONENT_BOUND = 20.0  # beyond which exp is not taken


@dataclass(frozen=True)
class ScoredTurn:
    """One turn of a trajectory, as the teacher saw it."""

    sample: TrainingSample
    where: np.ndarray  # (P,) bool, its tokens in the sample
    gap: np.ndarray  # (n,) Δ of its scored tokens; n may be 0
    sign: float  # of its advantage


class TurnSignal(GroupShaping):
    """Base class: `factors` says by how much the advantages of each turn are multiplied."""

    @dataclass(frozen=True)
    class Settings(GroupShaping.Settings):
        """Settings that both have."""

        @property
        def by_token(self) -> bool:
            return False

    settings: TurnSignal.Settings

    def shape_group(self, group: SampleGroup, strength: float) -> None:
        for turns, factors in zip(
            own := scored_turns(group), self.factors(own, group, strength), strict=True
        ):
            for turn, factor in zip(turns, factors, strict=True):
                turn.sample.put("shaped", turn.where, turn.sample.column("advantages")[turn.where] * factor)

    @abstractmethod
    def factors(
        self, trajectories: Sequence[Sequence[ScoredTurn]], group: SampleGroup, strength: float
    ) -> list[np.ndarray]:
        """For each trajectory, (T,) float32 factors of its turns."""


class Belief(TurnSignal):
    """AgentOPSD (arXiv 2608.05987): turns are weighted by how much they change the belief in success.

    The belief starts at the group's success rate B₀ and moves with the turns' gaps: c_t = γ·c_{t−1} + Σ_j Δ_j
    and B_t = σ(logit B₀ + c_t). z_t is the z-score of B_t − B_{t−1} over a trajectory's scored turns, and
    A' = A·[(1−λ) + λ·clip(1 + b·sign(A)·z_t, 1−b, 1+b)].
    """

    @dataclass(frozen=True)
    class Settings(TurnSignal.Settings):
        """Settings of the belief."""

        bound: float = setting(0.2, "b: weights stay within [1−b, 1+b]", low=0.0, high=1.0)
        discount: float = setting(1.0, "γ: how much of the gaps of earlier turns is kept", low=0.0, high=1.0)

        @property
        def summary(self) -> str:
            return "weight of turns by belief in success"

    settings: Belief.Settings

    def factors(
        self, trajectories: Sequence[Sequence[ScoredTurn]], group: SampleGroup, strength: float
    ) -> list[np.ndarray]:
        rate = float(np.mean([trajectory.success for trajectory in group.group.trajectories]))
        found = []
        for turns in trajectories:
            changes = belief_changes([turn.gap.sum() for turn in turns], rate, self.settings.discount)
            signs, bound = np.array([turn.sign for turn in turns]), self.settings.bound
            scored = np.array([len(turn.gap) > 0 for turn in turns])
            scores = np.zeros(len(turns))
            scores[scored] = z_scores(changes[scored])
            weights = 1.0 + (bound * signs * scores).clip(-bound, bound)
            found.append(((1.0 - strength) + strength * weights).astype(np.float32))
        return found


class TurnGap(TurnSignal):
    """GRSD (arXiv 2607.28076): turns are weighted by their mean gap, relative to the group's.

    u_t = exp(sign(A)·mean_j Δ_j) − 1, divided by the mean of |u| over the group's scored turns, gives û_t.
    A' = A·max(0.1, 1 + λ·clip(û_t, −c, c)). If all of a group succeeded, or all failed, A' = A.
    """

    @dataclass(frozen=True)
    class Settings(TurnSignal.Settings):
        """Settings of the turn weights."""

        clip: float = setting(0.2, "c: bound of a turn's relative signal", low=0.0)

        @property
        def summary(self) -> str:
            return "weight of turns by mean gap"

    settings: TurnGap.Settings

    def factors(
        self, trajectories: Sequence[Sequence[ScoredTurn]], group: SampleGroup, strength: float
    ) -> list[np.ndarray]:
        outcomes = {trajectory.success for trajectory in group.group.trajectories}
        raw = [np.array([_signed_change(turn) for turn in turns]) for turns in trajectories]
        scored = np.concatenate([np.zeros(0), *raw])
        scored = scored[~np.isnan(scored)]
        if len(outcomes) < 2 or not len(scored):
            return [np.ones(len(turns), np.float32) for turns in trajectories]
        mean, clip = np.abs(scored).mean() + LEAST_MEAN, self.settings.clip
        relative = [np.nan_to_num(one / mean, nan=0.0).clip(-clip, clip) for one in raw]
        return [np.maximum(LEAST_FACTOR, 1.0 + strength * one).astype(np.float32) for one in relative]


def scored_turns(group: SampleGroup) -> list[list[ScoredTurn]]:
    """The turns of each trajectory, in order."""
    return [[_scored(one.samples, number) for number in _numbers(one.samples)] for one in group.trajectories]


def belief_changes(gaps: Sequence[float], rate: float, discount: float) -> np.ndarray:
    """(T,) B_t − B_{t−1} of a trajectory.

    Args:
        gaps: Σ_j Δ_j of each turn.
        rate: B₀, the success rate of the group.
    """
    prior = np.clip(rate, LEAST_RATE, 1.0 - LEAST_RATE)
    evidence, beliefs = 0.0, [prior]
    for gap in gaps:
        evidence = discount * evidence + gap
        logit = np.log(prior / (1.0 - prior)) + evidence
        belief = 1.0 / (1.0 + np.exp(-np.clip(logit, -50.0, 50.0)))
        beliefs.append(np.clip(belief, LEAST_BELIEF, 1.0 - LEAST_BELIEF))
    return np.diff(np.array(beliefs))


def z_scores(values: np.ndarray) -> np.ndarray:
    """(T,) deviations from the mean in (population) standard deviations; 0 where all values are equal."""
    spread = values.std() if len(values) else 0.0
    return (values - values.mean()) / spread if spread > 1e-12 else np.zeros_like(values)


def _signed_change(turn: ScoredTurn) -> float:
    if not len(turn.gap):
        return float("nan")
    return float(np.expm1(np.clip(turn.sign * turn.gap.mean(), -EXPONENT_BOUND, EXPONENT_BOUND)))


def _numbers(samples: Sequence[TrainingSample]) -> list[int]:
    return sorted({int(number) for sample in samples for number in np.unique(sample.column("turns"))})


def _scored(samples: Sequence[TrainingSample], number: int) -> ScoredTurn:
    sample = next(one for one in samples if number in one.column("turns"))
    where = sample.column("turns") == number
    teacher = sample.teacher_logprobs
    gap = np.zeros(0) if teacher is None else (teacher - sample.column("rollout_logprobs"))[where]
    sign = float(np.sign(sample.column("advantages")[where].mean()))
    return ScoredTurn(sample, where, gap[~np.isnan(gap)].astype(np.float64), sign)
