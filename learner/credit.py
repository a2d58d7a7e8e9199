"""Credit: how much better than its peers a turn did. Pure NumPy.

An advantage estimator is a function of a task group and the `credit` settings. For each trajectory it returns
one number, (T,) numbers for its T turns, or a list with (n,) numbers for the n sampled tokens of each turn.
The built-in ones differ in who the peers of a turn are:

    grpo, rloo   every turn, or every trajectory, of the group
    gigpo        these, and the turns in the same state
    hgpo         the turns in the same state that were reached through the same k states, for k = 0 … K

PPO's estimator, which asks a critic instead of comparing peers, is in `learner.gae`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hindsight.configs.method import Credit, Normalization, Statistics
from hindsight.configs.registry import ADVANTAGES
from hindsight.configs.setting import setting, with_settings
from hindsight.feedback.anchors import anchors
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Group, Trajectory, TurnAt

Advantage = float | np.ndarray | Sequence[np.ndarray]  # of a trajectory: one, per turn, or per turn and token

ROUNDING = 1e-9  # smaller differences of returns are rounding: divided by their std, they would explode


def turn_returns(trajectory: Trajectory, credit: Credit, discount: float = 1.0) -> np.ndarray:
    """(T,) float64 return of each turn: the trajectory's discounted outcome, minus the turn's penalty."""
    away = np.arange(len(trajectory.turns))[::-1]
    outcome = credit.success_reward * float(trajectory.success)
    return outcome * discount**away - turn_penalties(trajectory, credit)


def turn_penalties(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(T,) float64, at least 0: the penalty of a turn whose response did not parse or whose action was not
    admissible. Only that turn's return contains it."""
    malformed = np.array([turn.malformed for turn in trajectory.turns], dtype=np.float64)
    inadmissible = np.array([turn.inadmissible for turn in trajectory.turns], dtype=np.float64)
    return credit.malformed_penalty * malformed + credit.inadmissible_penalty * inadmissible


def grpo(group: Group, credit: Credit) -> list[np.ndarray]:
    """A = (R − mean) / (std + 1e-6), std unbiased (arXiv 2402.03300); without std: Dr.GRPO (2503.20783).

    What mean and std run over is `credit.statistics`: "turns" counts every turn, so that long trajectories
    weigh more (SERL's published setting); "trajectories" counts each once, with the mean of its turns.
    """
    returns = [turn_returns(trajectory, credit) for trajectory in group.trajectories]
    samples = _samples(returns, credit.statistics)
    return _float32(_relative(values, samples, credit.normalize, ddof=1) for values in returns)


def rloo(group: Group, credit: Credit) -> list[np.ndarray]:
    """A = n/(n−1)·(R − mean) over n samples (arXiv 2402.14740).

    For a sample that is R minus the mean of the others. With `credit.statistics` = trajectories a sample is
    the mean of a trajectory's turns, from which turns with penalties differ.
    """
    returns = [turn_returns(trajectory, credit) for trajectory in group.trajectories]
    samples = _samples(returns, credit.statistics)
    others = max(1, len(samples) - 1)
    return _float32(len(samples) / others * _relative(values, samples, "none") for values in returns)


@dataclass(frozen=True)
class Anchored(Credit):
    """Settings of estimators that compare turns in the same state."""

    discount: float = setting(0.95, "γ of the returns that are compared", low=0.0, high=1.0)
    similarity: float = setting(
        1.0, "minimum difflib ratio of two equal states; 1 is an exact match", low=0.0, high=1.0
    )

    @property
    def summary(self) -> str:
        return self.advantage + self.unscaled


@dataclass(frozen=True)
class GigpoSettings(Anchored):
    """Settings of GiGPO."""

    step_weight: float = setting(1.0, "ω of the advantage among turns in the same state", low=0.0)


@dataclass(frozen=True)
class HgpoSettings(Anchored):
    """Settings of HGPO."""

    history: int = setting(2, "K, the most states before the current one that peers share", low=0)
    history_alpha: float = setting(1.0, "α of the weights (k + history_offset)^α", low=0.0)
    history_offset: int = setting(2, "2 as in the authors' code, 1 as in their paper", low=1)
    join_group: bool = setting(False, "make GRPO's advantage one more term, of weight 1")


@with_settings(GigpoSettings)
def gigpo(group: Group, credit: GigpoSettings) -> list[np.ndarray]:
    """A = A_E + ω·A_S (arXiv 2505.10978, equation 8).

    A_E is GRPO's. A_S compares a turn's discounted return G_t in the same way with those at its anchor; a
    turn alone at its anchor has A_S = 0.
    """
    total = [values.astype(np.float64) for values in grpo(group, credit)]
    steps = [turn_returns(trajectory, credit, credit.discount) for trajectory in group.trajectories]
    for anchor in anchors(group, credit.similarity):
        for (index, number), advantage in _compare(steps, anchor, credit.normalize, ddof=1):
            total[index][number] += credit.step_weight * advantage
    return _float32(total)


@with_settings(HgpoSettings)
def hgpo(group: Group, credit: HgpoSettings) -> list[np.ndarray]:
    """A = Σ_k w_k·A_k / Σ_k w_k over the k = 0 … K with A_k ≠ 0 (arXiv 2602.22817).

    A_k compares G_t, with the population's std, over the turns whose current state and k states before it
    are equal; a turn has no A_k for more states than came before it. w_k = (k + `credit.history_offset`)^α:
    an offset of 2 is the authors' code, 1 their paper. With `credit.join_group`, GRPO's advantage is one
    more term, of weight 1.
    """
    steps = [turn_returns(trajectory, credit, credit.discount) for trajectory in group.trajectories]
    joined = grpo(group, credit) if credit.join_group else [np.zeros(len(values)) for values in steps]
    total = [values.astype(np.float64) for values in joined]
    weight = [(values != 0).astype(np.float64) for values in joined]
    found = anchors(group, credit.similarity)
    for k in range(credit.history + 1):
        w = (k + credit.history_offset) ** credit.history_alpha
        for members in _same_history(found, k):
            for (index, number), advantage in _compare(steps, members, credit.normalize, ddof=0):
                total[index][number] += w * advantage
                weight[index][number] += w * (advantage != 0)
    return _float32(sums / np.where(w > 0, w, 1.0) for sums, w in zip(total, weight, strict=True))


def advantages(group: Group, credit: Credit) -> list[list[np.ndarray]]:
    """For each trajectory and turn, (n,) float32 advantages of its sampled tokens.

    Raises:
        ValueError: the estimator did not return an advantage for each trajectory, turn or token.
    """
    estimate = ADVANTAGES.find(credit.advantage)
    found: Sequence[Advantage] = estimate(group, ADVANTAGES.complete(credit))
    if not isinstance(found, Sequence | np.ndarray):
        raise ValueError(f"credit.advantage = {credit.advantage} returned {found!r}: expected a list")
    if len(found) != len(group.trajectories):
        wrong = f"{len(found)} advantages for {len(group.trajectories)} trajectories"
        raise ValueError(f"credit.advantage = {credit.advantage} returned {wrong}")
    return [_by_token(one, t, credit) for one, t in zip(found, group.trajectories, strict=True)]


def differ(group: Group, credit: Credit) -> bool:
    """Whether any advantage in the group is not 0, so that it teaches the policy something."""
    return any(turn.any() for trajectory in advantages(group, credit) for turn in trajectory)


def assign(group: SampleGroup, credit: Credit) -> None:
    """Compute the advantages of a group from its trajectories. Reads `turns`, writes `advantages`."""
    for trajectory, found in zip(group.trajectories, advantages(group.group, credit), strict=True):
        for sample in trajectory.samples:
            sample.advantages = np.concatenate([found[turn] for turn in np.unique(sample.column("turns"))])


def _by_token(found: Advantage, trajectory: Trajectory, credit: Credit) -> list[np.ndarray]:
    """(n,) float32 of each turn, from whatever an estimator may return for a trajectory."""
    lengths = [turn.end - turn.start for turn in trajectory.turns]
    if not isinstance(found, Sequence) and np.ndim(found) == 0:
        found = np.full(len(lengths), found)
    if not isinstance(found, Sequence | np.ndarray):
        raise ValueError(f"credit.advantage = {credit.advantage} returned {found!r} for a trajectory")
    per_turn = [
        np.full(n, own, np.float32) if np.ndim(own) == 0 else np.asarray(own, np.float32)
        for own, n in zip(found, lengths, strict=False)
    ]
    if len(found) != len(lengths) or [own.shape for own in per_turn] != [(n,) for n in lengths]:
        raise ValueError(
            f"credit.advantage = {credit.advantage} must return one advantage for the trajectory, "
            f"{len(lengths)} for its turns, or {lengths} for their tokens"
        )
    return per_turn


def _relative(values: np.ndarray, samples: np.ndarray, normalize: Normalization, ddof: int = 0) -> np.ndarray:
    """(values − mean) / (std + 1e-6), or without std; 0 for values that differ from the
    mean by rounding only, and all 0 for fewer than two samples or equal ones."""
    if len(samples) < 2 or np.ptp(samples) < ROUNDING:
        return np.zeros(len(values))
    scale = samples.std(ddof=ddof) + 1e-6 if normalize == "std" else 1.0
    apart = values - samples.mean()
    return np.where(np.abs(apart) < ROUNDING, 0.0, apart) / scale


def _samples(returns: Sequence[np.ndarray], statistics: Statistics) -> np.ndarray:
    """The samples of a group's mean and std; empty for fewer than two trajectories."""
    played = [values for values in returns if len(values)]
    if len(played) < 2:
        return np.zeros(0)
    return np.concatenate(played) if statistics == "turns" else np.array([v.mean() for v in played])


def _same_history(found: Sequence[Sequence[TurnAt]], k: int) -> Iterable[list[TurnAt]]:
    """Turns that share their current state and the k states before it. `found`: a group's anchors."""
    state = {member: place for place, anchor in enumerate(found) for member in anchor}
    shared: dict[tuple[int, ...], list[TurnAt]] = defaultdict(list)
    for index, number in state:
        if number >= k:
            shared[tuple(state[index, number - back] for back in range(k + 1))].append((index, number))
    return shared.values()


def _compare(
    steps: Sequence[np.ndarray], peers: Sequence[TurnAt], normalize: Normalization, ddof: int
) -> Iterable[tuple[TurnAt, float]]:
    """Each of `peers` with its advantage over all of them. `steps`: (T_i,) G_t of each trajectory."""
    values = np.array([steps[index][number] for index, number in peers])
    return zip(peers, _relative(values, values, normalize, ddof), strict=True)


def _float32(values: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [array.astype(np.float32) for array in values]
