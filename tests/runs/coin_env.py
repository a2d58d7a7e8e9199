"""An environment in which half of all episodes succeed: `env.name=FILE` of this file."""

from __future__ import annotations

import secrets

from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.tasks import Manifest, TaskSpec

TURNS = 3


class CoinEnv(TextEnv):
    """A few turns, then a coin is thrown."""

    def _reset(self, task: TaskSpec) -> Observation:
        self.left = TURNS
        return Observation("A room. What do you do?")

    def _step(self, action: str) -> StepResult:
        self.left -= 1
        ended, won = self.left == 0, self.left == 0 and secrets.randbits(1) == 1
        said = "You have won." if won else "Nothing happens."
        return StepResult(Observation(said), said, float(won), ended, False, won)


class CoinFamily(EnvFamily):
    """Two tasks."""

    name, action_format, turn_limit = "coin", "tags", TURNS

    def manifest(self) -> Manifest:
        train, held_out = (TaskSpec(split, self.name, "coin", split) for split in ("train", "eval"))
        return Manifest((train,), (held_out,))

    def make(self) -> CoinEnv:
        return CoinEnv(self.settings.max_turns)
