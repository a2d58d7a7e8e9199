"""The actor that runs episodes, many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from hindsight.configs.environ import Named
from hindsight.configs.schema import Config
from hindsight.envs.base import DataMissing, Demonstration, EnvError, NoDemonstration, SlotDied, SlotTimeout
from hindsight.envs.runtime.pool import SlotPool
from hindsight.envs.runtime.remote import ActorLost, ActorUnavailable, RemoteError, back, call, insist
from hindsight.envs.runtime.shard import SlotLimits
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.episode import EpisodeLimits, Generate, PromptTooLong, derive_seed, run_episode
from hindsight.rollout.render import load_renderer
from hindsight.rollout.router import Router
from hindsight.rollout.types import (
    EngineError,
    EngineLost,
    Failure,
    FailureKind,
    Generation,
    Sampling,
    Served,
    Trajectory,
    Tried,
)

T = TypeVar("T")
SERVES_EVERY = 0.5  # seconds between two checks of a lost engine


class Worker(Named):
    """Runs episodes on engines and environment slots. `ray.remote(Worker)` makes it an async Ray actor.

    After an infrastructure failure, an episode is retried up to `rollout.retries` times with the same seed,
    on a new slot and, if an engine failed, on another engine. A lost engine or simulated user costs no retry,
    and none helps a prompt that is too long. Any other exception is raised.
    """

    def __init__(
        self,
        model: str,
        config: Config,
        engines: Sequence[Any],
        shards: Sequence[Any],
        user: Any | None = None,
    ) -> None:
        """Load the renderer.

        Args:
            model: folder or hub name; only its tokenizer is loaded.
            engines: handles with ``generate.remote(ids, sampling, seconds)``.
            shards: actors that host the environment; no other client may use their slots.
            user: the `ModelServer` that plays the simulated user, if the run serves one.

        Raises:
            TemplateError: the model's chat template does not support `config.prompt`.
        """
        self._config = config
        self._renderer = load_renderer(model, config)
        self._engines, self._user = engines, user
        limits, patience = SlotLimits.of(config.env), config.cluster.stall_timeout
        self._slots = SlotPool(shards, config.env.slots, limits, patience)
        self._router = Router(len(engines))
        self._opened = asyncio.Condition()  # notified when an engine serves again
        self._waiting: set[asyncio.Task[None]] = set()  # for lost engines
        self._playing: set[asyncio.Task[Any]] = set()  # episodes
        self._limits = EpisodeLimits(config.env.max_turns, config.rollout.max_tokens)

    async def ready(self) -> None:
        """Answer; there is nothing to wait for."""

    async def watch(self) -> None:
        """Never return."""
        await asyncio.Event().wait()

    async def play(
        self, ordinal: int, index: int, task: TaskSpec, temperature: float, seed: int, preamble: str = ""
    ) -> Tried[Trajectory]:
        """Run one episode. Those of a group begin in the same state; each has a sampling seed of its own.

        Args:
            ordinal: of the group. index: of the episode in it.
            preamble: text shown to the agent before the task.

        Raises:
            DataMissing: the environment's data are missing.
        """
        if playing := asyncio.current_task():
            self._playing.add(playing)
            playing.add_done_callback(self._playing.discard)
        retried: list[Failure] = []
        own = derive_seed(seed, ordinal, index)
        outcome = await self._episode(ordinal, task, temperature, own, preamble, retried)
        return Tried(outcome, tuple(retried))

    async def reference(self, task: TaskSpec) -> Tried[tuple[str, ...]]:
        """A task's reference solution; empty if it has none.

        Raises:
            DataMissing: the environment's data are missing.
        """

        async def attempt() -> tuple[str, ...]:
            async with self._slots.lease() as slot:
                return tuple(await slot.reference(task) or ())

        retried: list[Failure] = []
        try:
            return Tried(await self._retry(task, attempt, retried), tuple(retried))
        except DataMissing:
            raise
        except EnvError as error:
            return Tried(_failure(error, task), tuple(retried))

    async def abandon(self) -> None:
        """End all episodes: nobody waits for them."""
        for playing in self._playing:
            playing.cancel()

    async def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """Return an expert's demonstration of a task.

        Raises:
            EnvError: the environment failed more than `rollout.retries` times.
        """

        async def attempt() -> Demonstration:
            async with self._slots.lease() as slot:
                demonstration: Demonstration = await slot.demonstrate(task, seed, noise)
                return demonstration

        return await self._retry(task, attempt, [])

    async def first_prompt(self, task: TaskSpec) -> int:
        """Count the tokens of a task's first prompt, which takes a reset.

        Raises:
            EnvError: the environment failed. Nothing is retried.
        """
        async with self._slots.lease() as slot:
            _, context = Conversation(self._renderer).prompt(await slot.reset(task))
            return len(context)

    async def _episode(
        self,
        ordinal: int,
        task: TaskSpec,
        temperature: float,
        seed: int,
        preamble: str,
        retried: list[Failure],
    ) -> Trajectory | Failure:
        failed: int | None = None  # the engine to avoid

        async def attempt() -> Trajectory:
            nonlocal failed
            engine = None
            try:
                async with self._slots.lease() as slot:
                    engine = await self._place(ordinal, failed)
                    limit, began = self._config.rollout.request_timeout, time.time()
                    turns: list[tuple[float, float]] = []
                    generate = timed(generate_on(self._engines[engine], engine, limit), began, turns)
                    played = await run_episode(
                        task, slot, generate, self._renderer, self._limits, temperature, seed, preamble
                    )
                    place = (slot.lease.shard, slot.lease.slot)
                    return replace(played, served=Served(engine, began, time.time(), *place, tuple(turns)))
            except EngineError as error:
                failed = engine
                if engine is not None and isinstance(error, EngineLost):
                    self._close(engine)
                raise
            finally:
                if engine is not None:
                    self._router.leave(ordinal, engine)

        try:
            return await self._retry(task, attempt, retried)
        except DataMissing:
            raise
        except PromptTooLong as error:
            return Failure("prompt", str(error), task.id)
        except (EnvError, EngineError) as error:
            return _failure(error, task)

    async def _place(self, ordinal: int, avoid: int | None) -> int:
        """Call `Router.place` as soon as an engine serves."""
        async with self._opened:
            await self._opened.wait_for(lambda: len(self._router.closed) < len(self._engines))
            return self._router.place(ordinal, avoid)

    def _close(self, engine: int) -> None:
        """Place no episode on a lost engine until it serves again."""
        if engine in self._router.closed:
            return
        self._router.closed.add(engine)
        waiting = asyncio.create_task(self._reopen(engine))
        self._waiting.add(waiting)  # the event loop alone would not keep it
        waiting.add_done_callback(self._waiting.discard)

    async def _reopen(self, engine: int) -> None:
        await _serving(self._engines[engine])
        async with self._opened:
            self._router.closed.discard(engine)
            self._opened.notify_all()

    async def _retry(self, task: TaskSpec, attempt: Callable[[], Awaitable[T]], retried: list[Failure]) -> T:
        """Run `attempt` with up to `rollout.retries` retries.

        Args:
            retried: receives the failures that were retried.

        Raises:
            EnvError, EngineError: the last attempt failed.
            DataMissing, NoDemonstration: not retried.
        """
        left = self._config.rollout.retries
        while True:
            user = await self._meet_user()
            try:
                return await attempt()
            except (DataMissing, NoDemonstration):
                raise
            except (EnvError, EngineError) as error:
                # A lost process is not the episode's fault, and Ray limits how often it happens.
                if not isinstance(error, EngineLost) and await self._meet_user() == user:
                    if not left:
                        raise
                    left -= 1
                retried.append(_failure(error, task))

    async def _meet_user(self) -> str:
        """Wait until the simulated user that the run serves answers; return the name of its process, or "".

        Raises:
            RemoteError, EngineError: it is not replaced.
        """
        if self._user is None:
            return ""
        name: str = await back(self._user, timeout=self._config.cluster.start_timeout)
        return name


def generate_on(
    handle: Any, engine: int, seconds: float, setting: str = "rollout.request_timeout"
) -> Generate:
    """Return a function that generates on one engine actor. It raises EngineError on timeout or failure."""

    async def generate(ids: np.ndarray, sampling: Sampling) -> Generation:
        what = f"generation on engine {engine}"
        try:
            generation: Generation = await call(
                handle,
                "generate",
                ids,
                sampling,
                seconds,
                timeout=seconds,
                setting=setting,
                what=what,
            )
            return generation
        except (ActorUnavailable, ActorLost) as error:
            raise EngineLost(str(error)) from error
        except RemoteError as error:
            raise EngineError(str(error)) from error

    return generate


def timed(generate: Generate, since: float, turns: list[tuple[float, float]]) -> Generate:
    """Wrap `generate` to note when it was called and when it answered, in seconds since `since`."""

    async def noting(ids: np.ndarray, sampling: Sampling) -> Generation:
        asked = time.time()
        generation = await generate(ids, sampling)
        turns.append((round(asked - since, 4), round(time.time() - since, 4)))
        return generation

    return noting


async def ask_worker(worker: Any, config: Config, method: str, *args: Any, what: str) -> Any:
    """Call a worker; call again if its process is replaced meanwhile, as episodes keep their seeds.

    Raises: as `envs.runtime.remote.call`.
    """
    limit = {"timeout": config.rollout.timeout, "setting": "rollout.timeout", "what": what}
    return await insist(worker, method, *args, start_timeout=config.cluster.start_timeout, **limit)


async def _serving(engine: Any) -> None:
    """Wait until an engine whose process is being replaced serves the newest weights."""
    limit: dict[str, Any] = {"timeout": 60.0, "setting": "cluster.start_timeout"}
    served = False
    while not served:
        await asyncio.sleep(SERVES_EVERY)
        with suppress(RemoteError):  # it is not back yet
            served = await call(engine, "serves", **limit)


def failure_kind(error: EnvError | EngineError) -> FailureKind:
    """Return the `Failure.kind` of an error."""
    match error:
        case SlotDied():
            return "env_died"
        case SlotTimeout():
            return "env_timeout"
        case EnvError():
            return "env_error"
        case EngineError():
            return "engine"


def _failure(error: EnvError | EngineError, task: TaskSpec) -> Failure:
    """Convert an error to a `Failure`."""
    return Failure(failure_kind(error), str(error), task.id)


def tally(trajectory: Trajectory) -> dict[str, int]:
    """Return a finished episode's counts. prompt_tokens includes each turn's full context."""
    turns = trajectory.turns
    return {
        "episodes": 1,
        "turns": len(turns),
        "generated_tokens": sum(turn.end - turn.start for turn in turns),
        "prompt_tokens": sum(turn.start for turn in turns),
        "malformed": sum(turn.malformed for turn in turns),
        "invalid": sum(turn.inadmissible for turn in turns),
    }
