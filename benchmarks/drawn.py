"""An environment whose episodes differ as real ones do: drawn turns, outcomes and times, for any model.

Every text is an action. Task and first action together draw whether the episode succeeds, so a group's
rewards differ whatever the model can do. A success ends after a third to all of the turns, a failure at the
limit. Each task has a prompt of its own.
"""

from __future__ import annotations

import random
import time

from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.tasks import Manifest, TaskSpec

TASKS = 64  # for training
TEXT = "Task {task}: you are in a room with a desk, a lamp and a shelf. Put the book on the shelf."
SECONDS, SPREAD = 0.005, 0.5  # of a step: median, and standard deviation of its log


def step_seconds(task: str, turn: int) -> float:
    """How long the environment takes for a step."""
    return SECONDS * random.Random(f"{task} {turn}").lognormvariate(0.0, SPREAD)


class DrawnEnv(TextEnv):
    def _reset(self, task: TaskSpec) -> Observation:
        self._task, self._last, self._success = task.id, 0, False
        return Observation(TEXT.format(task=task.id), ())

    def _step(self, action: str) -> StepResult:
        if not self._last:
            draw = random.Random(f"{self._task} {action}")
            self._success = draw.random() < 0.5
            self._last = draw.randint(self.max_turns // 3, self.max_turns) if self._success else 10**6
        time.sleep(step_seconds(self._task, self.turns))
        ended = self.turns >= self._last
        text = f"Step {self.turns}: you see the shelf."
        return StepResult(Observation(text, ()), text, float(ended), ended, False, ended)


class DrawnFamily(EnvFamily):
    name = "drawn"
    action_format = "tools"
    turn_limit = 50

    def manifest(self) -> Manifest:
        def tasks(split: str, count: int) -> tuple[TaskSpec, ...]:
            return tuple(TaskSpec(f"{split}-{index}", "drawn", "drawn", split) for index in range(count))

        return Manifest(train=tasks("train", TASKS), evaluation=tasks("evaluation", 8))

    def make(self) -> TextEnv:
        return DrawnEnv(self.settings.max_turns)
