"""Roles that take turns on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.cluster.turns import TurnError, Turns
from hindsight.envs.runtime.remote import RemoteTimeout


class Gpu:
    """Notes who is on it, and fails if two are."""

    def __init__(self) -> None:
        self.there: set[str] = {"engine", "teacher", "learner"}
        self.events: list[str] = []

    def switch(self, role: str, arrives: bool) -> Callable[[], Coroutine[Any, Any, None]]:
        async def move() -> None:
            await asyncio.sleep(0)
            (self.there.add if arrives else self.there.discard)(role)
            self.events.append(f"{role} {'wakes' if arrives else 'sleeps'}")

        return move

    async def turns(self) -> Turns:
        turns = Turns()
        for role in sorted(self.there):
            await turns.add(role, self.switch(role, False), self.switch(role, True))
        assert not self.there
        self.events.clear()
        return turns


@given(st.lists(st.tuples(st.sampled_from(["engine", "teacher", "learner"]), st.integers(0, 3)), max_size=30))
def test_only_one_role_is_on_the_gpu_and_everybody_gets_a_turn(work: list[tuple[str, int]]) -> None:
    async def run() -> None:
        gpu = Gpu()
        turns = await gpu.turns()

        async def use(role: str, ticks: int) -> None:
            async with turns.of(role):
                for _ in range(ticks):
                    assert gpu.there == {role}
                    await asyncio.sleep(0)
                assert gpu.there == {role}

        async with asyncio.timeout(10):
            await asyncio.gather(*(use(*one) for one in work))

    asyncio.run(run())


def test_a_step_changes_hands_as_often_as_its_phase() -> None:
    async def run() -> list[str]:
        gpu = Gpu()
        turns = await gpu.turns()

        async def group(seconds: float) -> None:
            async with turns.of("engine"):
                await asyncio.sleep(seconds)
            async with turns.of("teacher"):
                await asyncio.sleep(0)

        await asyncio.gather(*(group(seconds) for seconds in (0.0, 0.01, 0.02)))
        async with turns.of("learner"):
            pass
        return gpu.events

    assert asyncio.run(run()) == [
        *("engine wakes", "engine sleeps", "teacher wakes", "teacher sleeps", "learner wakes")
    ]


def test_without_roles_nothing_waits() -> None:
    async def run() -> None:
        turns = Turns()
        async with turns.of("engine"), turns.of("learner"):
            pass

    asyncio.run(asyncio.wait_for(run(), 1))


def test_a_role_that_does_not_leave_the_gpu_ends_the_run() -> None:
    async def run() -> None:
        turns = await Gpu().turns()
        async with turns.of("engine"):
            pass

        async def fails() -> None:
            raise RemoteTimeout("stuck")

        turns.sleep["engine"] = fails
        with pytest.raises(TurnError, match=r"could not be handed to the learner: stuck"):
            async with turns.of("learner"):
                pass
        assert turns.awake == "engine" and turns.holders == 0

    asyncio.run(run())
