"""The pool and two shards as real Ray actors: leases, failures of shards, and what a killed shard leaves."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray
from slot_tools import gone, run_async, running
from toy_env import AskingFamily, ToyFamily, task

from hindsight.configs.schema import Config, Env
from hindsight.envs.base import EnvError, InstanceLost, SlotDied, SlotTimeout, Verdict
from hindsight.envs.runtime.pool import LeasedSlot, SlotPool, start_pool
from hindsight.envs.runtime.shard import SlotLimits

ENV = Env(shards=2, slots=2, step_timeout=5.0, reset_timeout=20.0, max_turns=10)


@pytest.fixture
def handles(ray_local):
    pool = start_pool(Config(env=ENV), ToyFamily())
    slots = SlotPool(pool.shards, ENV.slots, SlotLimits.of(ENV), patience=60.0)
    yield SimpleNamespace(ready=pool.ready, shards=pool.shards, slots=slots)
    for actor in pool.shards:
        ray.kill(actor)


async def pids(slot: LeasedSlot) -> tuple[int, int]:
    """Of the slot's process and of the forkserver it came from."""
    return int((await slot.step("pid")).feedback), int((await slot.step("origin")).feedback)


def idle(handles) -> bool:
    """Whether every slot has been returned."""
    return [len(free) for free in handles.slots._free] == [ENV.slots] * ENV.shards


@run_async
async def test_more_episodes_than_slots_over_two_shards(handles):
    await handles.ready(30)
    used = set()

    async def episode(index: int) -> str:
        async with handles.slots.lease() as slot:
            used.add((slot.lease.shard, slot.lease.slot))
            await slot.reset(task(f"task-{index}"))
            for _ in range(5):
                result = await slot.step("add")
            assert await slot.finish() == Verdict(0.05, False, {"count": 5})
            return result.observation.text

    texts = await asyncio.gather(*map(episode, range(12)))
    assert texts == [f"task-{index} 5" for index in range(12)]
    assert used == {(shard, slot) for shard in range(2) for slot in range(2)}
    assert idle(handles)
    stats = await asyncio.gather(*(shard.stats.remote() for shard in handles.shards))
    assert sum(one.episodes for one in stats) == 12 and sum(one.steps for one in stats) == 60
    async with handles.slots.lease() as slot:
        assert (await slot.demonstrate(task("shown"), 0, 0.0)).first.text == "shown 0"
        assert await slot.reference(task()) == ["add"] * 100


@run_async
async def test_the_drivers_key_reaches_the_slots_that_need_it(ray_local, monkeypatch):
    monkeypatch.setenv("TOY_API_KEY", "sk-toy")
    pool = start_pool(Config(env=ENV), AskingFamily())
    slots = SlotPool(pool.shards, ENV.slots, SlotLimits.of(ENV), patience=60.0)
    async with slots.lease() as slot:
        await slot.reset(task())
        assert (await slot.step("variable TOY_API_KEY")).feedback == "sk-toy"
    for actor in pool.shards:
        ray.kill(actor)


@run_async
async def test_failures_reach_the_client_with_their_types(handles):
    async with handles.slots.lease() as slot:
        await slot.reset(task())
        with pytest.raises(EnvError, match=r"^reset: no such game$") as error:
            await slot.reset(task(broken=True))
        assert type(error.value) is EnvError
        for end, kind in (("raise wrong", InstanceLost), ("exit 3", SlotDied)):
            await slot.reset(task())
            with pytest.raises(kind):
                await slot.step(end)
        await slot.reset(task())
        with pytest.raises(SlotTimeout):
            await slot.step("spin")
        assert (await slot.reset(task())).text == "count 0"


@run_async
async def test_leases_come_back_from_errors_and_cancelled_clients(handles):
    started = asyncio.Event()

    async def broken() -> None:
        async with handles.slots.lease():
            raise KeyError("a client's bug")

    async def stuck() -> None:
        async with handles.slots.lease() as slot:
            await slot.reset(task())
            started.set()
            await slot.step("sleep 600")

    with pytest.raises(KeyError):
        await broken()
    clients = [asyncio.create_task(stuck()) for _ in range(6)]  # two of them stay in the queue
    await started.wait()
    for client in clients:
        client.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*clients, return_exceptions=True)
    )
    assert idle(handles)
    for _ in range(4):
        async with handles.slots.lease() as slot:
            assert (await slot.reset(task())).text == "count 0"


@run_async
async def test_a_killed_shard_is_slot_died_leaves_no_process_and_comes_back(handles):
    async with handles.slots.lease() as slot:
        await slot.reset(task())
        process, server = await pids(slot)
        assert running(process) and running(server)
        call = asyncio.create_task(slot.step("spin"))
        await asyncio.sleep(0.3)
        ray.kill(handles.shards[slot.lease.shard], no_restart=False)
        with pytest.raises(SlotDied):
            await call
        assert await gone(process) and await gone(server)
        # The failed call has waited for the shard's restart, so the retry is not wasted.
        assert (await slot.reset(task("retry"))).text == "retry 0"
    assert idle(handles)
