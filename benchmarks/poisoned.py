"""ALFWorld with two training tasks that cannot be trained on: `env.name=FILE` of this file.

One always raises, at the first action or, after malformed responses alone, at the last turn; the first prompt
of the other leaves no room for a response.
"""

from __future__ import annotations

from dataclasses import replace

from hindsight.envs.alfworld.env import AlfworldEnv, AlfworldFamily
from hindsight.envs.base import Demonstration, Observation, StepResult, Verdict
from hindsight.envs.tasks import Manifest, TaskSpec

RAISES, TOO_LONG = "raises", "too-long"  # ids of the tasks


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
        self._raise()
        return super()._step(action)

    def finish(self) -> Verdict | None:
        self._raise()
        return super().finish()

    def _raise(self) -> None:
        if self.poison == RAISES:
            raise RuntimeError("this task always raises")

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        return super().demonstrate(replace(task, data=task.data | {"poison": None}), seed, noise)


class PoisonedFamily(AlfworldFamily):
    """ALFWorld, whose second and fifth training task are poisoned."""

    def manifest(self) -> Manifest:
        found = super().manifest()
        train = list(found.train)
        for index, name in ((1, RAISES), (4, TOO_LONG)):
            train[index] = replace(train[index], id=name, data=train[index].data | {"poison": name})
        return Manifest(tuple(train), found.evaluation)

    def make(self) -> PoisonedEnv:
        self.manifest()  # the games may have to be made
        return PoisonedEnv(self._root, self._cache, self._config.max_turns, self._expert)
