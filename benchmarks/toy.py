"""An environment whose step costs nothing, so that all that is measured is the way to it."""

from __future__ import annotations

from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.tasks import Manifest, TaskSpec

TEXT = "You are in the middle of a room. " * 8  # about as long as a text game's observation
ACTIONS = tuple(f"go to cabinet {number}" for number in range(1, 24))


class ToyEnv(TextEnv):
    def _reset(self, task: TaskSpec) -> Observation:
        return Observation(TEXT, ACTIONS)

    def _step(self, action: str) -> StepResult:
        return StepResult(Observation(TEXT, ACTIONS), TEXT, 0.0, False, False, False)


class ToyFamily(EnvFamily):
    name = "toy"
    action_format = "tags"
    turn_limit = 50

    def manifest(self) -> Manifest:
        def tasks(split: str) -> tuple[TaskSpec, ...]:
            return tuple(TaskSpec(f"{split}-{index}", "toy", "toy", split) for index in range(16))

        return Manifest(train=tasks("train"), evaluation=tasks("evaluation"))

    def make(self) -> TextEnv:
        return ToyEnv(max_turns=1_000_000)
