"""A shard: fresh processes for lost ones, and no call of an old lease in a new episode."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from slot_tools import gone, run_async, running
from toy_env import ToyFamily, task

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvError, InstanceLost, SlotDied, SlotTimeout
from hindsight.envs.runtime.shard import Lease, Shard, SlotLimits

LIMITS = SlotLimits(step=5, reset=10, demonstrate=20)


@asynccontextmanager
async def sharded(slots: int = 1, limits: SlotLimits = LIMITS, **family) -> AsyncIterator[Shard]:
    shard = Shard(ToyFamily(**family), slots, limits)
    try:
        yield shard
    finally:
        await shard.close()


def lease(slot: int = 0, serial: int = 0) -> Lease:
    return Lease(shard=0, slot=slot, serial=serial)


async def pid_of(shard: Shard, holder: Lease) -> int:
    return int((await shard.step(holder, "pid")).feedback)


async def begun(shard: Shard) -> tuple[Lease, int]:
    """A lease that has begun an episode, and the process that it plays in."""
    holder = lease()
    await shard.reset(holder, task())
    return holder, await pid_of(shard, holder)


def test_a_demonstration_may_take_every_turn():
    limits = SlotLimits.of(Env(max_turns=3, step_timeout=2.0, reset_timeout=10.0))
    assert limits == SlotLimits(step=2.0, reset=10.0, demonstrate=16.0, memory=4 << 30)


@run_async
async def test_many_slots_at_once():
    async with sharded(slots=12) as shard:
        await shard.ready()

        async def episode(slot: int) -> tuple[int, str]:
            await shard.reset(lease(slot), task(f"task-{slot}"))
            for _ in range(slot):
                await shard.step(lease(slot), "add")
            return await pid_of(shard, lease(slot)), (await shard.step(lease(slot), "add")).observation.text

        played = await asyncio.gather(*map(episode, range(12)))
        assert [text for _, text in played] == [f"task-{slot} {slot + 2}" for slot in range(12)]
        assert len({pid for pid, _ in played}) == 12
        stats = await shard.stats()
        assert (stats.episodes, stats.steps) == (12, sum(range(12)) + 24)
        assert (stats.kills, stats.deaths, stats.replacements) == (0, 0, 0)
        assert len(stats.rss) == 12 and min(stats.rss) > 1 << 20


@run_async
async def test_a_process_serves_episode_after_episode():
    async with sharded() as shard:
        pids = set()
        for serial in range(3):
            await shard.reset(lease(serial=serial), task())
            pids.add(await pid_of(shard, lease(serial=serial)))
        assert len(pids) == 1


@run_async
async def test_a_hung_slot_is_replaced_by_the_warm_spare():
    async with sharded(limits=SlotLimits(step=0.5, reset=10, demonstrate=20)) as shard:
        holder = lease()
        await shard.reset(holder, task())
        old = await pid_of(shard, holder)
        spare = await shard._spares[0]
        with pytest.raises(SlotTimeout):
            await shard.step(holder, "spin")
        with pytest.raises(SlotDied, match="lost its episode"):
            await shard.step(holder, "add")
        observation = await shard.reset(holder, task("again"))
        assert observation.text == "again 0"
        assert await pid_of(shard, holder) == spare.pid != old
        assert await gone(old)
        stats = await shard.stats()
        assert (stats.kills, stats.deaths, stats.replacements, stats.episodes) == (1, 0, 1, 2)


@run_async
async def test_a_death_between_calls_is_no_step_of_a_fresh_process():
    async with sharded() as shard:
        holder, pid = await begun(shard)
        os.kill(pid, signal.SIGKILL)
        assert await gone(pid)
        with pytest.raises(SlotDied):
            await shard.step(holder, "add")
        with pytest.raises(SlotDied):
            await shard.step(holder, "add")
        await shard.reset(holder, task())
        assert (await shard.step(holder, "add")).observation.text == "count 1"
        os.kill(await pid_of(shard, holder), signal.SIGKILL)
        await asyncio.sleep(0.1)
        await shard.reset(holder, task())  # an idle death does not cost the next episode
        stats = await shard.stats()
        assert (stats.kills, stats.deaths, stats.replacements) == (0, 2, 2)


@run_async
async def test_a_spare_that_died_is_not_used():
    async with sharded() as shard:
        holder = lease()
        await shard.reset(holder, task())
        spare = await shard._spares[0]
        for pid in (spare.pid, await pid_of(shard, holder)):
            os.kill(pid, signal.SIGKILL)
            assert await gone(pid)
        await asyncio.sleep(0.1)
        await shard.reset(holder, task())
        assert await pid_of(shard, holder) != spare.pid


@run_async
async def test_errors_of_the_environment_keep_the_process():
    async with sharded() as shard:
        holder, pid = await begun(shard)
        with pytest.raises(EnvError, match="no such game"):
            await shard.reset(holder, task(broken=True))
        with pytest.raises(SlotDied):  # not a step of the episode before
            await shard.step(holder, "add")
        await shard.reset(holder, task())
        assert await pid_of(shard, holder) == pid
        stats = await shard.stats()
        assert (stats.kills, stats.deaths, stats.replacements) == (0, 0, 0)


@run_async
async def test_errors_that_nobody_foresaw_cost_the_process():
    async with sharded() as shard:
        holder, pid = await begun(shard)
        with pytest.raises(InstanceLost, match="ValueError: bad"):
            await shard.step(holder, "raise bad")
        with pytest.raises(SlotDied, match="lost its episode"):
            await shard.step(holder, "add")
        await shard.reset(holder, task())
        assert await pid_of(shard, holder) != pid and await gone(pid)
        stats = await shard.stats()
        assert (stats.kills, stats.deaths, stats.replacements) == (0, 1, 1)


@run_async
async def test_demonstrations_and_references():
    async with sharded() as shard:
        demonstration = await shard.demonstrate(lease(), task("shown"), 1, 0.0)
        assert demonstration.first.text == "shown 0" and len(demonstration.steps) == 1
        assert await shard.reference(lease(), task()) == ["add"] * 100
        assert (await shard.stats()).episodes == 1


@run_async
async def test_a_demonstration_has_its_own_deadline():
    async with sharded(limits=SlotLimits(step=5, reset=10, demonstrate=0.3)) as shard:
        await shard.ready()
        with pytest.raises(SlotTimeout, match="demonstrate"):
            await shard.demonstrate(lease(), task(slow=600), 1, 0.0)


@run_async
async def test_an_old_lease_cannot_touch_the_next_episode():
    async with sharded() as shard:
        old, new = lease(serial=1), lease(serial=2)
        await shard.reset(old, task("old"))
        abandoned = asyncio.create_task(shard.step(old, "sleep 600"))
        await asyncio.sleep(0.1)
        assert (await shard.reset(new, task("new"))).text == "new 0"  # does not wait for it
        with pytest.raises(SlotDied):
            await abandoned
        for late in (shard.step(old, "add"), shard.reset(old, task("late"))):
            with pytest.raises(SlotDied, match="has a newer lease"):
                await late
        assert (await shard.step(new, "add")).observation.text == "new 1"
        assert (await shard.stats()).kills == 1


@run_async
async def test_a_new_lease_must_reset_before_it_is_judged():
    async with sharded() as shard:
        await shard.reset(lease(serial=1), task())
        assert (await shard.finish(lease(serial=1))).info == {"count": 0}
        with pytest.raises(SlotDied, match="reset it"):
            await shard.finish(lease(serial=2))


@run_async
async def test_a_new_lease_must_reset_before_it_steps():
    async with sharded() as shard:
        await shard.reset(lease(serial=1), task())
        with pytest.raises(SlotDied, match="reset it"):
            await shard.step(lease(serial=2), "add")


@run_async
async def test_an_instance_that_cannot_be_made_is_an_error():
    async with sharded(fail="get the games") as shard:
        with pytest.raises(EnvError, match="get the games"):
            await shard.ready()
        with pytest.raises(EnvError, match="get the games"):
            await shard.reset(lease(), task())


@run_async
async def test_closing_leaves_no_process():
    async with sharded(slots=2) as shard:
        await shard.ready()
        pids = [seat.slot.pid for seat in shard._seats] + [(await shard._spares[0]).pid, shard._server.pid]
        assert all(map(running, pids))
    assert [await gone(pid) for pid in pids] == [True] * 4


@run_async
async def test_a_process_that_leaks_is_recycled_between_episodes():
    limits = SlotLimits(step=60, reset=60, demonstrate=60, memory=128 << 20)
    async with sharded(limits=limits) as shard:
        await shard.reset(lease(), task())
        first = await pid_of(shard, lease())
        await shard.reset(lease(), task())
        assert await pid_of(shard, lease()) == first
        await shard.step(lease(), "leak 150")
        await shard.step(lease(), "add")  # its episode continues
        await shard.reset(lease(), task())
        assert await pid_of(shard, lease()) != first and await gone(first)
        stats = await shard.stats()
        assert (stats.recycles, stats.kills, stats.deaths, stats.replacements) == (1, 0, 0, 0)


@run_async
async def test_a_process_that_leaks_without_end_loses_its_episode():
    limits = SlotLimits(step=60, reset=60, demonstrate=60, memory=128 << 20)
    async with sharded(limits=limits) as shard:
        await shard.reset(lease(), task())
        with pytest.raises(SlotDied, match=r"env\.memory_gib"):
            await shard.step(lease(), "leak 300")
        with pytest.raises(SlotDied, match="reset it"):
            await shard.step(lease(), "add")
        await shard.reset(lease(), task())
        assert (await shard.stats()).kills == 1
