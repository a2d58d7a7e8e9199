"""PPO's advantages from a critic's values (generalized advantage estimation, arXiv 1506.02438). Pure NumPy.

samples ──► `mask_steps` ──(critic: V)──► `estimate` ──► values, returns and advantages of the samples
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hindsight.configs.method import Credit
from hindsight.configs.setting import setting, with_settings
from hindsight.learner.credit import turn_penalties
from hindsight.learner.samples import SampleGroup, TrainingSample
from hindsight.rollout.types import Group, Trajectory

if TYPE_CHECKING:
    from hindsight.configs.schema import Config

EPSILON = 1e-8  # added to the variance: if all advantages are equal, they become 0


@dataclass(frozen=True)
class GaeSettings(Credit):
    """Settings of PPO. What the critic does not set, it shares with the learner."""

    critic: ClassVar[bool] = True

    step: Literal["token", "turn"] = setting("token", "what counts as a step: a sampled token or a turn")
    gamma: float = setting(1.0, "γ, the discount per step", low=0.0, high=1.0)
    gae_lambda: float = setting(
        1.0, "λ, from the critic's next value (0) to the observed rewards (1)", low=0.0, high=1.0
    )
    whiten: bool = setting(True, "normalize advantages over the sampled tokens of the batch")
    critic_lr: float = setting(1e-5, "peak learning rate of the critic", low=0.0)
    value_clip: float = setting(0.5, "how far a value may move in a step; 0 sets no limit", low=0.0)

    @property
    def summary(self) -> str:
        return f"gae, over {self.step}s, γ = {self.gamma:g}, λ = {self.gae_lambda:g}"

    def problems(self, config: Config) -> Iterator[str]:
        if config.loss.policy == 0:
            yield (
                "credit.advantage = gae trains a critic for nothing with loss.policy = 0: set loss.policy "
                "above 0, or another credit.advantage"
            )


@with_settings(GaeSettings)
def from_critic(group: Group, credit: Credit) -> list[np.ndarray]:
    """The entry `credit.advantage=gae`. Its advantages need a critic's values: see `estimate`."""
    raise TypeError("credit.advantage = gae is estimated from a critic's values, not from siblings")


def gae(
    rewards: np.ndarray, values: np.ndarray, gamma: float = 1.0, gae_lambda: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A_t = Σ_l (γλ)^l·δ_{t+l} with δ_t = r_t + γ·V_{t+1} − V_t (equations 11 and 16), and V's targets A + V.

    The value after the last step is 0, whatever ended the episode. With γ = λ = 1, A_t is the sum of the
    rewards from t on, minus V_t.

    Args:
        rewards: (n,) one episode's, by `turn_rewards` or `token_rewards`.
        values: (n,) the critic's V before each step, by the weights that sampled it.

    Returns:
        (n,) float32 advantages and (n,) float32 targets.
    """
    if len(rewards) != len(values):
        raise ValueError(f"{len(rewards)} rewards do not fit {len(values)} values")
    following = np.append(values[1:], 0.0) if len(values) else values
    deltas = rewards + gamma * following - values
    advantages = np.zeros(len(deltas))
    later = 0.0
    for step in reversed(range(len(deltas))):
        advantages[step] = later = deltas[step] + gamma * gae_lambda * later
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def turn_rewards(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(T,) float64 reward of each turn: minus its penalty, and the outcome on the last one."""
    rewards = -turn_penalties(trajectory, credit)
    rewards[-1:] += credit.success_reward * float(trajectory.success)
    return rewards


def token_rewards(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(n,) float64 over the n sampled tokens, turn after turn: a turn's reward is on its last token."""
    lengths = [turn.end - turn.start for turn in trajectory.turns]
    rewards = np.zeros(sum(lengths))
    rewards[np.cumsum(lengths, dtype=np.int64) - 1] = turn_rewards(trajectory, credit)
    return rewards


def mask_steps(groups: Sequence[SampleGroup], credit: GaeSettings) -> None:
    """Mark the tokens at which a step begins. Reads `turns`, writes the mask "value"."""
    for sample in _all(groups):
        first = np.diff(sample.column("turns"), prepend=-1) != 0
        sample.masks["value"] = first if credit.step == "turn" else np.ones(len(first), bool)


def estimate(groups: Sequence[SampleGroup], values: Sequence[np.ndarray], credit: GaeSettings) -> None:
    """Compute what a critic's values give. Each token of a turn has its step's advantage.

    Reads `turns` and the mask "value", writes `values`, `returns` and `advantages`.

    Args:
        values: the critic's V of each sample's steps, in the order of the groups' samples.
    """
    for sample, own in zip(_all(groups), values, strict=True):
        sample.put("values", sample.masks["value"], own.astype(np.float32))
    for group in groups:
        for trajectory, made in zip(group.group.trajectories, group.trajectories, strict=True):
            _estimate(trajectory, made.samples, credit)
    if credit.whiten:
        whiten(_all(groups))


def whiten(samples: Sequence[TrainingSample]) -> None:
    """A ← (A − mean) / √(variance + 1e-8) over all sampled tokens of the batch."""
    tokens = np.concatenate([np.zeros(0), *(sample.column("advantages") for sample in samples)])
    if len(tokens):
        mean, scale = tokens.mean(), np.sqrt(tokens.var() + EPSILON)
        for sample in samples:
            sample.advantages = ((sample.column("advantages") - mean) / scale).astype(np.float32)


def fit(samples: Sequence[TrainingSample]) -> dict[str, float]:
    """How well values fit returns. The explained variance is NaN if all returns are equal."""
    values, returns = (
        np.concatenate([np.zeros(0), *(getattr(sample, name) for sample in samples)])
        for name in ("values", "returns")
    )
    spread = returns.var()
    return {
        "value_mean": float(values.mean()),
        "return_mean": float(returns.mean()),
        "explained_variance": float(1.0 - (returns - values).var() / spread) if spread > 0 else float("nan"),
    }


def _estimate(trajectory: Trajectory, samples: Sequence[TrainingSample], credit: GaeSettings) -> None:
    """Put advantages and returns on one trajectory, whose steps may be in several sequences."""
    if not samples:
        return
    steps = [sample.select("value") for sample in samples]
    turns = np.concatenate([step.column("turns") for step in steps])
    order = np.argsort(turns, kind="stable")  # sequences need not be in the order of their turns
    values = np.concatenate([step.column("values") for step in steps])[order]
    rewards = (token_rewards if credit.step == "token" else turn_rewards)(trajectory, credit)
    found = np.empty((2, len(order)), np.float32)
    found[:, order] = gae(rewards, values, credit.gamma, credit.gae_lambda)
    cuts = np.cumsum([len(step.positions) for step in steps])[:-1]
    for sample, advantages, returns in zip(samples, *(np.split(row, cuts) for row in found), strict=True):
        sample.put("returns", sample.masks["value"], returns)
        begun = np.cumsum(sample.masks["value"]) - 1  # the step that each token belongs to
        sample.advantages = advantages[begun]


def _all(groups: Sequence[SampleGroup]) -> list[TrainingSample]:
    return [sample for group in groups for sample in group.samples]
