"""The pool's bookkeeping, without Ray."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slot_tools import run_async

from hindsight.envs.base import SlotDied, SlotTimeout
from hindsight.envs.runtime.pool import Pool
from hindsight.envs.runtime.shard import SlotLimits

LIMITS = SlotLimits(step=1, reset=1, demonstrate=1)


def pool(shards: int = 2, slots: int = 2, patience: float = 60) -> Pool:
    return Pool([f"shard-{index}" for index in range(shards)], slots, LIMITS, patience)


@run_async
async def test_leases_spread_over_the_shards():
    leases = pool(shards=3, slots=4)
    grants = [await leases.lease(f"{ticket}") for ticket in range(6)]
    assert Counter(grant.shard for grant in grants) == {"shard-0": 2, "shard-1": 2, "shard-2": 2}
    assert [grant.lease.serial for grant in grants] == sorted({grant.lease.serial for grant in grants})
    for ticket in (0, 3):
        await leases.release(f"{ticket}")
    assert grants[0].shard == grants[3].shard == (await leases.lease("next")).shard


@run_async
async def test_waiting_clients_are_served_in_order():
    leases = pool(shards=1, slots=1)
    await leases.lease("first")
    order: list[str] = []

    async def client(ticket: str) -> None:
        await leases.lease(ticket)
        order.append(ticket)
        await leases.release(ticket)

    clients = []
    for ticket in "abcde":
        clients.append(asyncio.create_task(client(ticket)))
        await asyncio.sleep(0)
    assert (await leases.stats()).waiting == 5 and order == []
    await leases.release("first")
    await asyncio.gather(*clients)
    assert order == list("abcde")
    stats = await leases.stats()
    assert stats.leased == (0,) and stats.waiting == 0


@run_async
async def test_a_waiting_client_may_give_up():
    leases = pool(shards=1, slots=1)
    await leases.lease("first")
    gives_up, waits = (asyncio.create_task(leases.lease(ticket)) for ticket in ("gives up", "waits"))
    await asyncio.sleep(0)
    await leases.release("gives up")
    await leases.release("first")
    with pytest.raises(SlotDied, match="released before"):
        await gives_up
    assert (await waits).lease.slot == 0


@run_async
async def test_a_release_may_overtake_its_lease():
    leases = pool(shards=1, slots=1)
    await leases.release("late")
    with pytest.raises(SlotDied, match="released before"):
        await leases.lease("late")
    assert (await leases.stats()).leased == (0,)


@run_async
async def test_patience_is_counted_from_the_last_slot_that_came_back():
    leases = pool(shards=1, slots=1, patience=0.3)
    await leases.lease("0")
    waiting = [asyncio.create_task(leases.lease(f"{ticket}")) for ticket in range(1, 5)]
    for ticket in range(3):  # the last client waits longer than the patience, but slots keep coming back
        await asyncio.sleep(0.2)
        await leases.release(f"{ticket}")
        await waiting[ticket]
    with pytest.raises(SlotTimeout, match=r"no slot came back in 0\.3 s"):
        await waiting[3]
    await leases.release("3")
    assert (await leases.stats()).leased == (0,)


@given(st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(0, 7), max_size=60))
def test_a_slot_has_one_holder_and_none_is_lost(shards: int, slots: int, moves: list[int]):
    """Each number toggles one of eight clients between asking and giving up."""

    async def play() -> None:
        leases = pool(shards, slots)
        clients: dict[int, tuple[str, asyncio.Task]] = {}
        for turn, client in enumerate(moves):
            if client in clients:
                await leases.release(clients.pop(client)[0])
            else:
                ticket = f"{client}-{turn}"
                clients[client] = (ticket, asyncio.create_task(leases.lease(ticket)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            held = list(leases._leases.values())
            places = {(lease.shard, lease.slot) for lease in held}
            free = sum(map(len, leases._free))
            assert len(places) == len(held) == min(len(clients), shards * slots)
            assert len(held) + free == shards * slots
            loads = (await leases.stats()).leased
            assert sum(loads) == len(held)
        for ticket, asked in clients.values():
            await leases.release(ticket)
            await asyncio.gather(asked, return_exceptions=True)
        assert (await leases.stats()).leased == (0,) * shards

    asyncio.run(play())
