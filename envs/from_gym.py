"""A Gymnasium environment with text observations and actions, used as it is.

`env.name=module:Class`, or `module:Id-v0` for one that the module registers.

- A task is a seed of `reset`; training and evaluation have different ones.
- The agent writes an action in tags; `step` gets the text between them.
- The reward of an episode is the sum of its rewards, clipped to [0, 1].
- It is successful if `info["success"]` says so; without that key, if it terminated and the sum reached 1.
- A class with `Settings` (a dataclass that extends `configs.schema.Env`) is made with an instance of them.
- `info` may hold "actions" (those that are admissible now), "state_key", "goal", and at a reset "rules": see
  `envs.base.Observation`. By default there are none, and equal texts are the same state.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvFamily, Observation, SettingError, StepResult, TextEnv
from hindsight.envs.boundary import bad, number
from hindsight.envs.tasks import Manifest, TaskSpec

Make = Callable[..., gymnasium.Env[str, str]]


class FromGym(TextEnv):
    """Episodes of a Gymnasium environment."""

    def __init__(self, env: gymnasium.Env[str, str], max_turns: int) -> None:
        """
        Args:
            max_turns: actions after which an episode is truncated.

        Raises:
            SettingError: its observations or actions are no text.
        """
        super().__init__(max_turns)
        for name, space in (("observation", env.observation_space), ("action", env.action_space)):
            if not isinstance(space, Text):
                raise SettingError(f"{name}_space is {space}: expected gymnasium.spaces.Text")
        self._env = env
        self._total = 0.0

    def _reset(self, task: TaskSpec) -> Observation:
        text, info = _parts(self._env.reset(seed=task.data["seed"]), "(observation, info)")
        self._total = 0.0
        return _observation(text, info)

    def _step(self, action: str) -> StepResult:
        answer = self._env.step(action)
        text, reward, terminated, truncated, info = _parts(
            answer, "(observation, reward, terminated, truncated, info)"
        )
        observation = _observation(text, info)
        self._total += number(reward, f"the reward of {action[:80]!r}")
        success = info.get("success", bool(terminated and self._total >= 1.0))
        total = min(1.0, max(0.0, self._total))
        return StepResult(observation, text, total, terminated, truncated, success)

    def close(self) -> None:
        self._env.close()


class GymFamily(EnvFamily):
    """The tasks of one Gymnasium environment; `adopt` makes a subclass for each."""

    action_format = "tags"
    turn_limit = 50
    has_references = False
    make_env: Make

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.settings, self.cache)  # the class of `adopt` cannot be imported

    def manifest(self) -> Manifest:
        self.make().close()  # so that spaces that are no text are found before a run starts
        config = self.settings
        count = config.eval_tasks + config.train_tasks
        seeds = random.Random(f"{config.seed} {self.name}").sample(range(2**31), count)
        evaluation = tuple(self._task(seed, "evaluation") for seed in seeds[: config.eval_tasks])
        return Manifest(tuple(self._task(seed, "train") for seed in seeds[config.eval_tasks :]), evaluation)

    def make(self) -> FromGym:
        try:
            own = () if self.Settings is Env else (self.settings,)
            return FromGym(type(self).make_env(*own), self.settings.max_turns)
        except SettingError as error:
            raise SettingError(f"env.name={self.name!r}: {error}") from error

    def _task(self, seed: int, split: str) -> TaskSpec:
        return TaskSpec(f"seed-{seed}", self.name, "seed", split, {"seed": seed})


def adopt(name: str, found: type[gymnasium.Env[str, str]]) -> type[GymFamily]:
    """The family of `found`, which `env.name=name` stands for."""
    own = getattr(found, "Settings", Env)
    return type("GymFamily", (GymFamily,), {"name": name, "make_env": staticmethod(found), "Settings": own})


def _restore(config: Env, cache: Path) -> EnvFamily:
    from hindsight.envs.registry import find_family

    return find_family(config.name)(config, cache)


def _parts(answer: Any, expected: str) -> tuple[Any, ...]:
    """What `reset` or `step` returned, if it is a tuple of as many as expected."""
    if not isinstance(answer, tuple) or len(answer) != expected.count(",") + 1:
        raise bad("the answer", answer, expected)
    return answer


def _observation(text: Any, info: Any) -> Observation:
    """The observation as it came: `envs.boundary` checks it."""
    if not isinstance(info, Mapping):
        raise bad("info", info, "a dict")
    key: Any = info.get("state_key", text)
    actions: Any = info.get("actions", ())
    listed: Any = actions if isinstance(actions, str | bytes) else tuple(actions)
    named: Any = key if key is None else str(key)
    return Observation(text, listed, named, rules=info.get("rules", ""), goal=info.get("goal", ""))
