"""Slots of all shards for the episodes of one client: `async with pool.lease() as slot` hosts one at a time.

    client: SlotPool (which slot is free) ──reset, step──► Shard (Ray actor) ──► slot (process)

Whatever breaks on the way (a process, a shard, its machine) reaches the client as an EnvError.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray

from hindsight.configs.environ import actor_name_variable, blanked, present_variables
from hindsight.configs.schema import Config
from hindsight.envs.base import (
    Demonstration,
    EnvFamily,
    Observation,
    SlotDied,
    SlotTimeout,
    StepResult,
    Verdict,
)
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.remote import ActorUnavailable, RemoteError, RemoteTimeout, back, call
from hindsight.envs.runtime.shard import Lease, Shard, SlotLimits
from hindsight.envs.tasks import TaskSpec

TRAVEL = 30.0  # seconds that a call may spend outside the shard's own deadlines: network, a busy actor
SHARD_CPUS = 0.1  # that Ray counts for a shard
RESTART = 60.0  # seconds in which a dead actor restarts even on busy cores: a process, its imports


class SlotPool:
    """Leases the slots of all shards, first come first served, each from the least loaded shard."""

    def __init__(self, shards: Sequence[Any], slots: int, limits: SlotLimits, patience: float) -> None:
        """
        Args:
            shards: handles of the shard actors.
            slots: slots per shard.
            patience: seconds a client may wait during which no slot at all is returned.
        """
        self._shards = tuple(shards)
        self._free = [list(range(slots)) for _ in shards]
        self._available = asyncio.Semaphore(slots * len(self._shards))
        self._limits = limits
        self._patience = patience
        self._waiting: set[asyncio.Timeout] = set()
        self._serials = itertools.count(time.time_ns())  # grows, also if another pool used the shards before

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[LeasedSlot]:
        """Wait for a slot, use it for one episode after another, and return it in any case.

        Raises:
            SlotTimeout: no slot became free for `patience` seconds.
        """
        await self._turn()
        free = max(self._free, key=len)
        lease = Lease(self._free.index(free), free.pop(), next(self._serials))
        try:
            yield LeasedSlot(lease, self._shards[lease.shard], self._limits)
        finally:
            free.append(lease.slot)
            until = asyncio.get_running_loop().time() + self._patience
            for deadline in self._waiting:
                if not deadline.expired():
                    deadline.reschedule(until)
            self._available.release()

    async def _turn(self) -> None:
        """Wait until a slot is free for this client; others that came first have theirs."""
        deadline = asyncio.timeout(self._patience)
        try:
            async with deadline:
                self._waiting.add(deadline)
                await self._available.acquire()
        except TimeoutError as error:
            raise SlotTimeout(
                f"no environment slot became free within {self._patience:g} s; "
                "increase env.slots or env.shards"
            ) from error
        finally:
            self._waiting.discard(deadline)


@dataclass(frozen=True)
class PoolHandles:
    """The actors that `start_pool` made."""

    shards: tuple[Any, ...]

    async def ready(self, timeout: float) -> None:
        """Wait until every slot of every shard has made its instance.

        Raises:
            EnvError: an instance cannot be made, or not all of them within `timeout` seconds.
        """
        limit: dict[str, Any] = {"timeout": timeout, "setting": "cluster.start_timeout"}
        await asyncio.gather(*(_begin(shard, "ready", **limit) for shard in self.shards))


def start_pool(
    config: Config, family: EnvFamily | None = None, secrets: Mapping[str, str] | None = None
) -> PoolHandles:
    """Create the shards in the running Ray cluster, without waiting for their processes.

    Args:
        family: the environment; by default the one that `config.env` names.
        secrets: environment variables for its slots alone, besides those that the family names.
    """
    env = config.env
    family = family or make_family(env)
    limits = SlotLimits.of(env)
    known = {**present_variables(family.secrets), **(secrets or {})}

    def shard(index: int) -> Any:
        actor = ray.remote(Shard).options(
            num_cpus=SHARD_CPUS,
            max_restarts=-1,
            max_concurrency=1000 + 4 * env.slots,
            scheduling_strategy="SPREAD",
            # Secrets are arguments: Ray logs and shows its variables.
            runtime_env={"env_vars": blanked() | actor_name_variable("shard", index)},
        )
        return actor.remote(family, env.slots, limits, secrets=known)

    return PoolHandles(tuple(map(shard, range(env.shards))))


class LeasedSlot:
    """A client's end of a leased slot. Every call answers or raises EnvError within its deadline.

    After SlotDied or SlotTimeout the same lease may begin again with `reset`, on a fresh process.
    """

    def __init__(self, lease: Lease, shard: Any, limits: SlotLimits) -> None:
        self.lease = lease
        self._shard = shard
        self._limits = limits

    async def reset(self, task: TaskSpec) -> Observation:
        """Start an episode (`TextEnv.reset`)."""
        return await self._open("reset", task, seconds=self._limits.reset)

    async def step(self, action: str) -> StepResult:
        """Take a step (`TextEnv.step`). SlotDied: the process was lost, now or since the last call."""
        return await self._go_on("step", action)

    async def finish(self) -> Verdict | None:
        """Judge the episode as it stands (`TextEnv.finish`). SlotDied: as for `step`."""
        return await self._go_on("finish")

    async def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """A whole episode of the expert (`TextEnv.demonstrate`); ends the episode that `reset` started."""
        return await self._open("demonstrate", task, seed, noise, seconds=self._limits.demonstrate)

    async def reference(self, task: TaskSpec) -> list[str] | None:
        """A solution of the task (`TextEnv.reference`)."""
        return await self._open("reference", task, seconds=self._limits.reset)

    async def _go_on(self, method: str, *args: Any) -> Any:
        timeout = self._limits.step + TRAVEL
        return await _answer(
            self._shard, method, self.lease, *args, timeout=timeout, setting="env.step_timeout"
        )

    async def _open(self, method: str, *args: Any, seconds: float) -> Any:
        making = self._limits.reset  # a fresh process may have to be made first
        limit: dict[str, Any] = {"timeout": making + seconds + TRAVEL, "setting": "env.reset_timeout"}
        return await _begin(self._shard, method, self.lease, *args, **limit)


async def _begin(actor: Any, method: str, *args: Any, timeout: float, setting: str) -> Any:
    """As `_answer`, for calls that begin something: repeated once if the shard was restarting."""
    try:
        return await _answer(actor, method, *args, timeout=timeout, setting=setting)
    except SlotDied as error:
        if not isinstance(error.__cause__, ActorUnavailable):
            raise
        return await _answer(actor, method, *args, timeout=timeout, setting=setting)


async def _answer(actor: Any, method: str, *args: Any, timeout: float, setting: str) -> Any:
    """`actor.method(*args)` with every infrastructure failure as an EnvError."""
    try:
        return await call(actor, method, *args, timeout=timeout, setting=setting)
    except RemoteTimeout as error:
        raise SlotTimeout(str(error)) from error
    except RemoteError as error:
        await _restarted(actor)
        raise SlotDied(str(error)) from error


async def _restarted(actor: Any) -> None:
    """Wait for a dead actor to restart, at most RESTART seconds: its absence must not cost a retry."""
    with suppress(RemoteError):
        await back(actor, "stats", timeout=RESTART)
