"""Credit: how much better than its group a turn did. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from configs.schema import Credit
from rollout.types import Group, Trajectory


def turn_returns(trajectory: Trajectory, credit: Credit) -> np.ndarray:
    """(T,) float64 return of each turn: the trajectory's outcome less a penalty if it was malformed."""
    malformed = np.array([turn.action is None for turn in trajectory.turns], dtype=np.float64)
    return credit.success_return * float(trajectory.success) - credit.malformed_penalty * malformed


def grpo(returns: Sequence[np.ndarray], statistics: str) -> list[np.ndarray]:
    """(T_i,) float32 advantage of each turn of each trajectory: (R - mean) / (std + 1e-6), std unbiased.

    Args:
        returns: (T_i,) return of each turn, one array per trajectory of the group.
        statistics: what mean and std run over: "turns" counts every turn, so that long trajectories weigh
            more (SERL's published setting); "trajectories" counts each once, with the mean of its turns.

    A group of one trajectory, or of equal returns, says nothing: all zeros.
    """
    played = [values for values in returns if len(values)]
    if len(played) > 1:
        samples = np.concatenate(played) if statistics == "turns" else np.array([v.mean() for v in played])
        if np.ptp(samples) > 0:
            mean, scale = samples.mean(), samples.std(ddof=1) + 1e-6
            return [((values - mean) / scale).astype(np.float32) for values in returns]
    return [np.zeros(len(values), dtype=np.float32) for values in returns]


def advantages(group: Group, credit: Credit) -> list[np.ndarray]:
    """(T_i,) float32 advantage of each turn of each trajectory, by the configured estimator."""
    return grpo([turn_returns(t, credit) for t in group.trajectories], credit.statistics)
