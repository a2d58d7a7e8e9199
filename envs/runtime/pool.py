"""The pool leases the slots of all shards: `async with lease_slot(pool) as slot` hosts one episode at a time.

    client ──lease──► Pool (who may use which slot)
       └──reset, step──► Shard (Ray actor) ──► slot (process)

The pool sees no observation: clients talk to the shards directly. Whatever breaks on the way (a process,
a shard, its machine) reaches the client as an EnvError.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray

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
from hindsight.envs.runtime.remote import ActorUnavailable, RemoteError, RemoteTimeout, call
from hindsight.envs.runtime.shard import Lease, Shard, SlotLimits
from hindsight.envs.tasks import TaskSpec

TRAVEL = 30.0  # seconds that a call may spend outside the shard's own deadlines: the wire, a busy actor
SHARD_CPUS = 0.1  # that Ray counts for a shard
RESTART = 60.0  # seconds in which a dead actor comes back even on busy cores: a process, its imports


@dataclass(frozen=True)
class PoolStats:
    leased: tuple[int, ...]  # slots in use per shard
    waiting: int  # clients in the queue


@dataclass(frozen=True)
class Grant:
    """A lease and what a client needs to use it."""

    lease: Lease
    shard: Any  # actor handle
    limits: SlotLimits


class Pool:
    """Leases slots, first come first served, each from the least loaded shard. The pool is made a Ray actor.

    A client names its lease by a ticket of its own, so that giving up is one message that needs no answer,
    whether the lease is queued, granted, or granted while the message travels.
    """

    def __init__(self, shards: Sequence[Any], slots: int, limits: SlotLimits, patience: float) -> None:
        """
        Args:
            shards: handles of the shard actors.
            slots: slots per shard.
            patience: seconds a client may wait during which no slot at all comes back.
        """
        self._shards = tuple(shards)
        self._free = [list(range(slots)) for _ in shards]
        self._slots = slots
        self._limits = limits
        self._patience = patience
        self._leases: dict[str, Lease] = {}
        self._queue: OrderedDict[str, asyncio.Future[Grant]] = OrderedDict()
        self._early: set[str] = set()  # released before their lease call arrived (actors may reorder calls)
        self._serial = 0
        self._returned = 0  # leases given back so far

    async def lease(self, ticket: str) -> Grant:
        """Wait for a slot.

        Raises:
            SlotTimeout: no slot came back for `patience` seconds.
            SlotDied: the ticket was released before it got a slot.
        """
        if ticket in self._early:
            self._early.remove(ticket)
            raise SlotDied(f"the lease {ticket} was released before it was granted")
        granted = asyncio.get_running_loop().create_future()
        self._queue[ticket] = granted
        self._grant()
        while not granted.done():
            returned = self._returned
            await asyncio.wait((granted,), timeout=self._patience)
            if not granted.done() and returned == self._returned:
                del self._queue[ticket]
                raise SlotTimeout(f"no slot came back in {self._patience:g} s; raise env.slots or env.shards")
        if granted.cancelled():
            raise SlotDied(f"the lease {ticket} was released before it was granted")
        return granted.result()

    async def release(self, ticket: str) -> None:
        """Give up a lease: granted, waiting or yet to arrive."""
        if ticket in self._queue:
            self._queue.pop(ticket).cancel()
        elif ticket in self._leases:
            lease = self._leases.pop(ticket)
            self._free[lease.shard].append(lease.slot)
            self._returned += 1
            self._grant()
        else:
            self._early.add(ticket)

    async def stats(self) -> PoolStats:
        return PoolStats(leased=self._loads(), waiting=len(self._queue))

    def _loads(self) -> tuple[int, ...]:
        return tuple(self._slots - len(free) for free in self._free)

    def _grant(self) -> None:
        """Serve the queue while slots are free."""
        while self._queue and any(self._free):
            ticket, granted = self._queue.popitem(last=False)
            shard = min((load, index) for index, load in enumerate(self._loads()) if self._free[index])[1]
            self._serial += 1
            lease = Lease(shard=shard, slot=self._free[shard].pop(), serial=self._serial)
            self._leases[ticket] = lease
            granted.set_result(Grant(lease, self._shards[shard], self._limits))


@dataclass(frozen=True)
class PoolHandles:
    """The actors that `start_pool` made."""

    pool: Any  # what `lease_slot` takes
    shards: tuple[Any, ...]

    async def ready(self, timeout: float) -> None:
        """Wait until every slot of every shard has made its instance.

        Raises:
            EnvError: an instance cannot be made, or not all of them within `timeout` seconds.
        """
        limit: dict[str, Any] = {"timeout": timeout, "setting": "cluster.start_timeout"}
        await asyncio.gather(*(_answer(shard, "ready", **limit) for shard in self.shards))


def start_pool(
    config: Config, family: EnvFamily | None = None, variables: Mapping[str, str] | None = None
) -> PoolHandles:
    """Create the pool and its shards in the running Ray cluster, without waiting for their processes.

    Args:
        family: the environment; by default the one that `config.env` names.
        variables: environment variables that its processes get besides those of the cluster.
    """
    env = config.env
    family = family or make_family(env)
    limits = SlotLimits.of(env)
    shard = ray.remote(Shard).options(
        num_cpus=SHARD_CPUS,
        max_restarts=-1,
        max_concurrency=1000 + 4 * env.slots,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": dict(variables or {})},
    )
    shards = tuple(shard.remote(family, env.slots, limits) for _ in range(env.shards))
    # Waiting clients count as concurrent calls, and releases must get past any number of them.
    pool = ray.remote(Pool).options(num_cpus=0, max_concurrency=100_000)
    return PoolHandles(pool.remote(shards, env.slots, limits, config.cluster.stall_timeout), shards)


@asynccontextmanager
async def lease_slot(pool: Any) -> AsyncIterator[LeasedSlot]:
    """Wait for a slot of the pool actor, use it for one episode after another, give it back in any case.

    Raises:
        SlotTimeout: no slot of the pool has come back for `cluster.stall_timeout` seconds.
    """
    ticket = uuid4().hex
    try:
        grant = await _answer(pool, "lease", ticket, timeout=1e9, setting="")  # the pool keeps the deadline
        yield LeasedSlot(grant)
    finally:
        pool.release.remote(ticket)  # not awaited: nothing may hold it up or cancel it


class LeasedSlot:
    """A client's end of a leased slot. Every call answers or raises EnvError within its deadline.

    After SlotDied or SlotTimeout the same lease may begin again with `reset`, on a fresh process.
    """

    def __init__(self, grant: Grant) -> None:
        self.lease = grant.lease
        self._shard = grant.shard
        self._limits = grant.limits

    async def reset(self, task: TaskSpec) -> Observation:
        """Begin an episode (`TextEnv.reset`)."""
        return await self._open("reset", task, seconds=self._limits.reset)

    async def step(self, action: str) -> StepResult:
        """Go on with it (`TextEnv.step`). SlotDied: its process was lost, now or since the last call."""
        return await self._go_on("step", action)

    async def finish(self) -> Verdict | None:
        """Judge it as it stands (`TextEnv.finish`). SlotDied: as for `step`."""
        return await self._go_on("finish")

    async def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """A whole episode by the expert (`TextEnv.demonstrate`); ends the episode begun by `reset`."""
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
        try:
            return await _answer(self._shard, method, self.lease, *args, **limit)
        except SlotDied as error:
            if not isinstance(error.__cause__, ActorUnavailable):
                raise
            # The shard was between two lives. An opening has no past to lose: it is asked for once more.
            return await _answer(self._shard, method, self.lease, *args, **limit)


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
    """Wait for a dead actor to come back, at most RESTART seconds: its absence must not cost a retry."""
    with suppress(RemoteError, TimeoutError):
        async with asyncio.timeout(RESTART):
            while True:
                try:
                    await call(actor, "stats", timeout=RESTART, setting="")
                    return
                except ActorUnavailable:  # a restart has begun
                    await asyncio.sleep(0.1)
