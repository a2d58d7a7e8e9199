"""PPO's advantages from the values of a critic (generalized advantage estimation, arXiv 1506.02438)."""

from __future__ import annotations

import numpy as np

from hindsight.configs.schema import Credit
from hindsight.learner.credit import turn_penalties
from hindsight.rollout.types import Trajectory


def gae(
    rewards: np.ndarray, values: np.ndarray, gamma: float = 1.0, lam: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """A_t = Σ_l (γλ)^l·δ_{t+l} with δ_t = r_t + γ·V_{t+1} − V_t (equations 11 and 16), and V's targets A + V.

    A step is a turn, or a sampled token. Nothing is worth anything behind the last one, whatever ended the
    episode. With γ = λ = 1, A_t is the sum of the rewards from t on less V_t.

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
        advantages[step] = later = deltas[step] + gamma * lam * later
    return advantages.astype(np.float32), (advantages + values).astype(np.float32)


def turn_rewards(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(T,) float64 reward of each turn: less its penalty, and behind the last turn the outcome."""
    rewards = -turn_penalties(trajectory, credit)
    rewards[-1:] += credit.success_reward * float(trajectory.success)
    return rewards


def token_rewards(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(n,) float64 over the n sampled tokens, turn after turn: each turn's reward is on its last token."""
    lengths = [turn.end - turn.start for turn in trajectory.turns]
    rewards = np.zeros(sum(lengths))
    rewards[np.cumsum(lengths, dtype=np.int64) - 1] = turn_rewards(trajectory, credit)
    return rewards
