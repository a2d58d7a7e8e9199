"""An advantage estimator: GRPO that also rewards short episodes.

hindsight train nano credit.advantage=advantage.py credit.length_penalty=0.05
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hindsight.configs.method import Credit
from hindsight.configs.setting import setting, with_settings
from hindsight.rollout.types import Group


@dataclass(frozen=True)
class Settings(Credit):
    """The section `credit`, extended."""

    length_penalty: float = setting(0.02, "deducted from the return for each turn", low=0.0)


@with_settings(Settings)
def example_advantage(group: Group, credit: Settings) -> list[float]:
    """One advantage per trajectory; (T,) numbers for its turns, or arrays for their tokens, work too."""
    returns = np.array(
        [
            credit.success_reward * trajectory.success - credit.length_penalty * len(trajectory.turns)
            for trajectory in group.trajectories
        ]
    )
    return list(returns - returns.mean()) if len(returns) else []
