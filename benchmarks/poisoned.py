"""ALFWorld with two training tasks that cannot be trained on: `env.name=FILE` of this file.

One fails whenever it is played, at the first action or, after malformed responses alone, at the last turn. It
returns what no environment may, or raises. The first prompt of the other leaves no room for a response.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

from hindsight.envs.alfworld.env import AlfworldEnv, AlfworldFamily
from hindsight.envs.base import Demonstration, Observation, StepResult, Verdict
from hindsight.envs.tasks import Manifest, TaskSpec

FAILS, TOO_LONG = "fails", "too-long"  # ids of the tasks
DAMAGES = cycle(("reward", "bytes", "surrogate", "no answer", "raises"))  # which ends its process


class PoisonedEnv(AlfworldEnv):
    """Plays the poisoned tasks wrong, and demonstrates them well."""

    poison: str | None = None

    def _reset(self, task: TaskSpec) -> Observation:
        self.poison = task.data.get("poison")
        observation = super()._reset(task)
        if self.poison == TOO_LONG:
            return replace(observation, text=observation.text + " You see a mug." * 2000)
        return observation

    def _step(self, action: str) -> StepResult:
        return self._spoil(super()._step(action))

    def finish(self) -> Verdict | None:
        return self._spoil(super().finish())

    def _spoil(self, answer: Any) -> Any:
        if self.poison != FAILS:
            return answer
        damage = next(DAMAGES)
        if damage == "raises":
            raise RuntimeError("this task always fails")
        if damage == "no answer" or answer is None:
            return 0
        if damage == "reward" or isinstance(answer, Verdict):
            return replace(answer, reward=float("nan"))
        text: Any = b"bytes" if damage == "bytes" else "half a pair: \ud800"
        return replace(answer, observation=replace(answer.observation, text=text))

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        return super().demonstrate(replace(task, data=task.data | {"poison": None}), seed, noise)


class PoisonedFamily(AlfworldFamily):
    """ALFWorld, whose second and fifth training task are poisoned."""

    def manifest(self) -> Manifest:
        found = super().manifest()
        train = list(found.train)
        for index, name in ((1, FAILS), (4, TOO_LONG)):
            train[index] = replace(train[index], id=name, data=train[index].data | {"poison": name})
        return Manifest(tuple(train), found.evaluation)

    def make(self) -> PoisonedEnv:
        self.manifest()  # the games may have to be made
        return PoisonedEnv(self._root, self._cache, self._config.max_turns, self._expert)
