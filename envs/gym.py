"""The built-in environments behind Gymnasium's interface; importing this module registers them.

    import hindsight.envs.gym
    env = gymnasium.make("hindsight/BFCL-v0", kinds=["base"])
    env = gymnasium.make("hindsight.envs.gym:hindsight/BFCL-v0")          # both in one

Actions and observations are text; `info` has the other fields. As in training, the instance runs in a process
of its own, which is killed if a call misses its deadline.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from hindsight.configs.registry import ENVIRONMENTS
from hindsight.envs.base import NO_EPISODE, EnvError, Observation
from hindsight.envs.registry import find_family, make_family
from hindsight.envs.runtime.shard import SlotLimits
from hindsight.envs.runtime.slot import Forkserver, Slot
from hindsight.envs.tasks import TaskSpec

TITLES = {
    "alfworld": "ALFWorld",
    "webshop": "WebShop",
    "taubench": "TauBench",
    "appworld": "AppWorld",
    "bfcl": "BFCL",
    "searchqa": "SearchQA",
}
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Unicode's basic plane without surrogates; a space of all characters would take hundreds of megabytes.
CHARACTERS = frozenset(map(chr, (*range(0xD800), *range(0xE000, 0x10000))))
LONGEST_ACTION, LONGEST_OBSERVATION = 1 << 14, 1 << 20  # characters


class GymEnv(gymnasium.Env[str, str]):
    """One `TextEnv` over the tasks of its family.

    `info` has the fields of the `Observation`, its whole text included; a step's also "feedback", "success"
    and "details" (the benchmark's own).
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the base class declares it so

    def __init__(self, name: str, render_mode: None = None, **settings: Any) -> None:
        """
        Args:
            name: name of a built-in environment, or module:Class.
            render_mode: must be None: observations are text.
            settings: settings of the section `env`; `max_turns` defaults to the benchmark's usual limit.

        Raises:
            ValueError, DataMissing: of the family.
        """
        settings.setdefault("max_turns", find_family(name).turn_limit)
        config = ENVIRONMENTS.settings(name)(name=name, **settings)
        family = make_family(config)
        manifest = family.manifest()
        self._training = manifest.train
        self._tasks = {task.id: task for task in (*manifest.evaluation, *manifest.train)}
        self._limits = SlotLimits.of(config)
        self._server = Forkserver(family)
        self._slot: Slot | None = None
        self._loop = asyncio.new_event_loop()  # in a thread, for the caller may be in a loop of its own
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.render_mode = render_mode
        self.action_space = Text(LONGEST_ACTION, min_length=0, charset=CHARACTERS)
        self.observation_space = Text(LONGEST_OBSERVATION, min_length=0, charset=CHARACTERS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode of `options["task"]`, or of a training task drawn by the seed.

        Raises:
            ValueError: there is no such task.
            EnvError: the instance failed or was killed; the next reset gets a new one.
        """
        super().reset(seed=seed)
        task = self._choose((options or {}).get("task"))
        if self._slot is None or not self._slot.alive:
            self._slot = self._run(Slot.start(self._server, self._limits.reset))
        observation = self._run(self._slot.call("reset", task, deadline=self._limits.reset))
        return _fit(observation.text), _fields(observation)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one action.

        Raises:
            EnvError: the episode has ended, or the instance failed or had to be killed.
        """
        if self._slot is None:
            raise EnvError(NO_EPISODE)
        result = self._run(self._slot.call("step", action, deadline=self._limits.step))
        info = _fields(result.observation) | {
            "feedback": result.feedback,
            "success": result.success,
            "details": dict(result.info),
        }
        return _fit(result.observation.text), result.reward, result.terminated, result.truncated, info

    def close(self) -> None:
        if self._loop.is_running():
            if self._slot:
                self._loop.call_soon_threadsafe(self._slot.kill)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._server.close()

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def _choose(self, wanted: str | None) -> TaskSpec:
        if wanted is None:
            return self._training[int(self.np_random.integers(len(self._training)))]
        if wanted not in self._tasks:
            known = ", ".join(list(self._tasks)[:3])
            raise ValueError(f"options['task']={wanted!r} is not a task; for example: {known}")
        return self._tasks[wanted]


def _fields(observation: Observation) -> dict[str, Any]:
    return dict(vars(observation))


def _fit(text: str) -> str:
    """`text` as the observation space holds it: cut, and other characters replaced."""
    return "".join(char if char in CHARACTERS else REPLACEMENT for char in text[:LONGEST_OBSERVATION])


for _name, _title in TITLES.items():
    gymnasium.register(f"hindsight/{_title}-v0", "hindsight.envs.gym:GymEnv", kwargs={"name": _name})
