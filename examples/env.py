"""An environment: guess a number from 1 to `env.limit`.

hindsight train nano env.name=env.py env.limit=20
"""

from __future__ import annotations

from dataclasses import dataclass

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting
from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.tasks import Manifest, TaskSpec


class ExampleEnv(TextEnv):
    """One episode at a time, alone in its process."""

    def _reset(self, task: TaskSpec) -> Observation:
        self.secret = task.data["secret"]
        return Observation(f"I think of a whole number from 1 to {task.data['limit']}. Which is it?")

    def _step(self, action: str) -> StepResult:
        guess = int(action) if action.isascii() and action.isdecimal() and len(action) < 10 else 0
        won = guess == self.secret
        text = "Right." if won else "Higher." if guess < self.secret else "Lower."
        return StepResult(Observation(text), text, float(won), won, False, won)

    def reference(self, task: TaskSpec) -> list[str]:
        return [str(task.data["secret"])]


class ExampleFamily(EnvFamily):
    """Its tasks, split into training and evaluation."""

    name, action_format, turn_limit = "guess", "tags", 10

    @dataclass(frozen=True)
    class Settings(Env):
        limit: int = setting(100, "largest number", low=2)

    settings: Settings

    def manifest(self) -> Manifest:
        data = [{"secret": n + 1, "limit": self.settings.limit} for n in range(self.settings.limit)]
        tasks = [TaskSpec(str(one["secret"]), self.name, "guess", "all", one) for one in data]
        return Manifest(train=tuple(tasks[::2]), evaluation=tuple(tasks[1::2]))

    def make(self) -> ExampleEnv:
        return ExampleEnv(self.settings.max_turns)
