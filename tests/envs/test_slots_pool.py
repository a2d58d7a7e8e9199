"""Which client gets which slot, and when, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slot_tools import run_async

from hindsight.envs.base import SlotTimeout
from hindsight.envs.runtime.pool import SlotPool
from hindsight.envs.runtime.shard import SlotLimits

LIMITS = SlotLimits(step=1, reset=1, demonstrate=1)


def pool_of(shards: int = 2, slots: int = 2, patience: float = 60) -> SlotPool:
    return SlotPool([f"shard-{index}" for index in range(shards)], slots, LIMITS, patience)


def held(pool: SlotPool, slots: int) -> list[int]:
    return [slots - len(free) for free in pool._free]


@run_async
async def test_leases_spread_over_the_shards():
    pool = pool_of(shards=3, slots=4)
    async with AsyncExitStack() as stack:
        leases = [(await stack.enter_async_context(pool.lease())).lease for _ in range(6)]
        assert Counter(lease.shard for lease in leases) == {0: 2, 1: 2, 2: 2}
        assert [lease.serial for lease in leases] == sorted({lease.serial for lease in leases})
        async with pool_of().lease() as other:  # of a later client, whom the shards have to obey
            assert other.lease.serial > leases[-1].serial
    assert held(pool, 4) == [0, 0, 0]
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(pool.lease())
        assert sorted(held(pool, 4)) == [1, 1, 2]


@run_async
async def test_waiting_clients_are_served_in_order():
    pool = pool_of(shards=1, slots=1)
    order: list[str] = []

    async def client(name: str) -> None:
        async with pool.lease():
            order.append(name)

    async with pool.lease():
        clients = []
        for name in "abcde":
            clients.append(asyncio.create_task(client(name)))
            await asyncio.sleep(0)
        assert order == []
    clients.append(asyncio.create_task(client("late")))
    await asyncio.gather(*clients)
    assert order == [*"abcde", "late"]
    assert held(pool, 1) == [0]


@run_async
async def test_a_slot_comes_back_from_errors_and_from_clients_that_give_up():
    pool = pool_of(shards=1, slots=1)
    with pytest.raises(KeyError):
        async with pool.lease():
            raise KeyError("a client's bug")

    async def client() -> None:
        async with pool.lease():
            await asyncio.sleep(600)

    clients = [asyncio.create_task(client()) for _ in range(3)]  # two of them wait
    await asyncio.sleep(0)
    clients[0].cancel()
    await asyncio.sleep(0)  # the slot is back, and the next client not yet awake
    clients[1].cancel()
    await asyncio.sleep(0.01)
    assert held(pool, 1) == [1] and not clients[2].done()
    clients[2].cancel()
    await asyncio.wait(clients)
    assert held(pool, 1) == [0]
    async with pool.lease():
        pass


@run_async
async def test_patience_is_counted_from_the_last_slot_that_came_back():
    pool = pool_of(shards=1, slots=1, patience=0.3)
    entered: list[int] = []
    leave = [asyncio.Event() for _ in range(5)]

    async def client(number: int) -> None:
        async with pool.lease():
            entered.append(number)
            await leave[number].wait()

    clients = [asyncio.create_task(client(number)) for number in range(5)]
    for number in range(3):  # the last client waits longer than the patience, but slots keep coming back
        await asyncio.sleep(0.2)
        leave[number].set()
    with pytest.raises(SlotTimeout, match=r"no environment slot became free within 0\.3 s"):
        await clients[4]
    assert entered == [0, 1, 2, 3]
    leave[3].set()
    await clients[3]
    assert held(pool, 1) == [0] and not pool._waiting


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 7), max_size=60))
def test_a_slot_has_one_holder_and_none_is_lost(shards: int, slots: int, moves: list[int]):
    """Each number toggles one of eight clients between asking and giving up."""

    async def run() -> None:
        pool = pool_of(shards, slots)
        places: list[tuple[int, int]] = []

        async def client() -> None:
            async with pool.lease() as slot:
                place = slot.lease.shard, slot.lease.slot
                places.append(place)
                try:
                    await asyncio.sleep(600)
                finally:
                    places.remove(place)

        clients: dict[int, asyncio.Task[None]] = {}
        for number in moves:
            if number in clients:
                clients.pop(number).cancel()
            else:
                clients[number] = asyncio.create_task(client())
            for _ in range(4):
                await asyncio.sleep(0)
            assert len(set(places)) == len(places) == min(len(clients), shards * slots)
            assert sum(held(pool, slots)) == len(places)
        for task in clients.values():
            task.cancel()
        await asyncio.gather(*clients.values(), return_exceptions=True)
        assert held(pool, slots) == [0] * shards

    asyncio.run(run())
