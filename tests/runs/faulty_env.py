"""An environment with tasks that can never be played: `env.name=FILE` of this file."""

from __future__ import annotations

from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.tasks import Manifest, TaskSpec


class FaultyEnv(TextEnv):
    """Every action fails; some tasks break the environment before the first."""

    def _reset(self, task: TaskSpec) -> Observation:
        if task.kind == "broken":
            raise KeyError(f"no file for {task.id}")
        return Observation("A room. What do you do?")

    def _step(self, action: str) -> StepResult:
        return StepResult(Observation("Nothing happens."), "Nothing happens.", 0.0, False, False, False)


class FaultyFamily(EnvFamily):
    """Six tasks, two of them broken."""

    name, action_format, turn_limit = "faulty", "tags", 2

    def manifest(self) -> Manifest:
        kinds = ["sound", "broken", "sound", "sound", "broken", "sound"]
        train = [TaskSpec(f"{kind}-{n}", self.name, kind, "train") for n, kind in enumerate(kinds)]
        return Manifest(tuple(train), (TaskSpec("held-out", self.name, "sound", "eval"),))

    def make(self) -> FaultyEnv:
        return FaultyEnv(self.settings.max_turns)
