"""A shard owns K slots: it gives every call a deadline and replaces processes that died or hung.

    lease ──► seat ──► slot (a process)      seats are numbered 0 … K−1; a slot that dies leaves its seat
                        ▲                    empty until the next episode there, which takes a warm spare
                   warm spares

A seat accepts calls only from its newest lease (leases are numbered in the order they were granted), so a
late call from a timed-out client cannot affect the next episode.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hindsight.configs.environ import Named
from hindsight.configs.schema import Env
from hindsight.envs.base import (
    Demonstration,
    EnvFamily,
    InstanceLost,
    Observation,
    SlotDied,
    SlotTimeout,
    StepResult,
    Verdict,
)
from hindsight.envs.runtime.slot import Forkserver, Slot
from hindsight.envs.tasks import TaskSpec


@dataclass(frozen=True)
class Lease:
    """The right to use one slot."""

    shard: int
    slot: int  # seat within the shard
    serial: int  # grows with every lease


@dataclass(frozen=True)
class SlotLimits:
    """Seconds that a call may take before its process is killed, and bytes that a process may hold."""

    step: float
    reset: float  # also for making an instance and for a reference solution
    demonstrate: float  # a whole episode: a reset and as many steps as the turn limit allows
    memory: int = 0  # of its own: above it the next episode gets a fresh process, twice that ends this one

    @staticmethod
    def of(env: Env) -> SlotLimits:
        """The limits that the configuration sets."""
        episode = env.reset_timeout + env.max_turns * env.step_timeout
        memory = int(env.memory_gib * 2**30)
        return SlotLimits(env.step_timeout, env.reset_timeout, episode, memory)


@dataclass(frozen=True)
class ShardStats:
    """Counts since the shard started, and memory now."""

    episodes: int  # resets and demonstrations that were answered
    steps: int  # steps that were answered, those inside demonstrations not counted
    kills: int  # processes killed because a call missed its deadline or its client had gone
    deaths: int  # processes that ended in any other way
    recycles: int  # processes replaced between episodes because they had grown too large
    replacements: int  # processes started in place of lost ones
    rss: tuple[int, ...]  # bytes per seat, 0 where it is empty; pages shared among slots count in each


@dataclass
class _Seat:
    slot: Slot | None = None
    lease: int = -1  # serial of the newest lease that called
    playing: int = -1  # serial of the lease whose episode this process hosts
    lost: bool = False  # it had a process, which is gone
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Shard(Named):
    """K seats over one forkserver. A plain asyncio object; the pool makes it a Ray actor."""

    def __init__(
        self,
        family: EnvFamily,
        slots: int,
        limits: SlotLimits,
        spares: int = 1,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            secrets: for the environment's processes alone (`Forkserver`).
        """
        self._limits = limits
        self._server = Forkserver(family, secrets)
        self._seats = [_Seat() for _ in range(slots)]
        self._wanted_spares = spares
        self._spares: deque[asyncio.Task[Slot]] = deque()
        self._starting = asyncio.Semaphore(os.cpu_count() or 1)  # more at once only miss deadlines
        self._counts = dict.fromkeys(("episodes", "steps", "kills", "deaths", "recycles", "replacements"), 0)

    async def ready(self) -> None:
        """Fill every seat and warm the spares.

        Raises:
            EnvError: an instance cannot be made.
        """

        async def fill(seat: _Seat) -> None:
            async with seat.lock:
                await self._fill(seat)

        await asyncio.gather(*map(fill, self._seats))

    async def reset(self, lease: Lease, task: TaskSpec) -> Observation:
        """Start an episode, in a new process if the seat has lost its own."""
        observation = await self._open(lease, "reset", task, deadline=self._limits.reset)
        self._counts["episodes"] += 1
        return observation

    async def step(self, lease: Lease, action: str) -> StepResult:
        """Take the next step of the lease's episode.

        Raises:
            SlotDied: the episode's process is gone, now or since an earlier call.
        """
        result: StepResult = await self._go_on(lease, "step", action)
        self._counts["steps"] += 1
        return result

    async def finish(self, lease: Lease) -> Verdict | None:
        """Judge the lease's episode as it stands (`TextEnv.finish`). SlotDied: as for `step`."""
        verdict: Verdict | None = await self._go_on(lease, "finish")
        return verdict

    async def demonstrate(self, lease: Lease, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """A whole episode by the environment's expert (`TextEnv.demonstrate`)."""
        demonstration = await self._open(
            lease, "demonstrate", task, seed, noise, deadline=self._limits.demonstrate
        )
        self._counts["episodes"] += 1
        return demonstration

    async def reference(self, lease: Lease, task: TaskSpec) -> list[str] | None:
        """A solution of the task, if there is one (`TextEnv.reference`)."""
        return await self._open(lease, "reference", task, deadline=self._limits.reset)

    async def stats(self) -> ShardStats:
        """What the shard has counted, and the memory of each slot."""
        rss = tuple(seat.slot.rss if seat.slot else 0 for seat in self._seats)
        return ShardStats(**self._counts, rss=rss)

    async def close(self) -> None:
        """End every process."""
        for spare in self._spares:
            spare.cancel()
        await asyncio.gather(*self._spares, return_exceptions=True)
        for seat in self._seats:
            if seat.slot:
                seat.slot.kill()
        self._server.close()

    def _claim(self, lease: Lease) -> _Seat:
        """The lease's seat. From now on no older lease may use it; a call that one left running is killed.

        Raises:
            SlotDied: a newer lease has called.
        """
        seat = self._seats[lease.slot]
        if lease.serial < seat.lease:
            raise SlotDied(f"slot {lease.slot} of shard {lease.shard} has a newer lease")
        if lease.serial > seat.lease:
            seat.lease = lease.serial
            if seat.slot and seat.slot.busy:
                seat.slot.kill()
        return seat

    async def _go_on(self, lease: Lease, method: str, *args: Any) -> Any:
        """A call within the lease's episode."""
        seat = self._claim(lease)
        async with seat.lock:
            self._claim(lease)
            if seat.slot is None or seat.playing != lease.serial:
                raise SlotDied(f"slot {lease.slot} of shard {lease.shard} lost its episode: reset it")
            result = await self._call(seat, method, *args, deadline=self._limits.step)
            self._bound(seat, lease)
        return result

    async def _open(self, lease: Lease, method: str, *args: Any, deadline: float) -> Any:
        """A call that needs no earlier one, so that any process can answer it."""
        seat = self._claim(lease)
        async with seat.lock:
            self._claim(lease)
            seat.playing = -1
            self._recycle(seat)
            await self._fill(seat)
            result = await self._call(seat, method, *args, deadline=deadline)
            seat.playing = lease.serial
        return result

    async def _call(self, seat: _Seat, method: str, *args: Any, deadline: float) -> Any:
        assert seat.slot is not None
        try:
            return await seat.slot.call(method, *args, deadline=deadline)
        except (SlotTimeout, SlotDied, InstanceLost):
            self._empty(seat, seat.slot)
            raise

    async def _fill(self, seat: _Seat) -> None:
        """Ensure that the seat holds a living process."""
        if seat.slot and not seat.slot.alive:
            self._empty(seat, seat.slot)
        if seat.slot is None:
            seat.slot = await self._fresh()
            self._counts["replacements"] += seat.lost
            seat.lost = False

    def _recycle(self, seat: _Seat) -> None:
        """Replace a process that has grown beyond its limit, between two episodes."""
        slot, ceiling = seat.slot, self._limits.memory
        if slot and ceiling and slot.rss > ceiling and slot.private > ceiling:  # the first is cheap to ask
            slot.kill()
            seat.slot = None
            self._counts["recycles"] += 1

    def _bound(self, seat: _Seat, lease: Lease) -> None:
        """End a process that keeps growing during an episode, before the machine runs out of memory.

        Raises:
            SlotDied: it held more than twice the ceiling.
        """
        slot, most = seat.slot, 2 * self._limits.memory
        if slot and most and slot.rss > most and slot.private > most:
            slot.kill()
            self._empty(seat, slot)
            raise SlotDied(
                f"the process of slot {lease.slot} held over {most >> 20} MiB, twice env.memory_gib"
            )

    def _empty(self, seat: _Seat, slot: Slot) -> None:
        """Remove a lost process from its seat and count it."""
        slot.reap()
        seat.slot, seat.lost = None, True
        self._counts["kills" if slot.killed else "deaths"] += 1

    async def _fresh(self) -> Slot:
        """A process that has hosted no episode: a warm spare, or a new one."""
        ready: asyncio.Task[Slot] | None = None
        while self._spares and ready is None:
            spare = self._spares.popleft()
            lost = spare.done() and (spare.cancelled() or spare.exception() or not spare.result().alive)
            ready = None if lost else spare
        ready = ready or asyncio.create_task(self._start())
        while len(self._spares) < self._wanted_spares:
            self._spares.append(asyncio.create_task(self._start()))
        return await ready

    async def _start(self) -> Slot:
        async with self._starting:
            return await Slot.start(self._server, self._limits.reset)
