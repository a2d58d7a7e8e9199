"""What a family preloads is loaded once, in the process that slots are forked from."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from slot_tools import run_async
from toy_env import ToyEnv, ToyFamily, task

from hindsight.envs.base import DataMissing, StepResult
from hindsight.envs.runtime.slot import Forkserver, Slot

LOADED_IN: list[int] = []


class PreloadingEnv(ToyEnv):
    def step(self, action: str) -> StepResult:
        return super().step(f"big {len(LOADED_IN)}") if action == "count" else super().step(action)

    def _origin(self, _: str) -> int:
        return LOADED_IN[0]


class PreloadingFamily(ToyFamily):
    def preload(self) -> None:
        LOADED_IN.append(os.getpid())


class EmptyHanded(ToyFamily):
    def preload(self) -> None:
        raise DataMissing("no data here")


@run_async
async def test_preloaded_once_and_shared_by_all_slots():
    with closing(Forkserver(PreloadingFamily(env=PreloadingEnv))) as server:
        slots = [await Slot.start(server, 30) for _ in range(2)]
        for slot in slots:
            await slot.call("reset", task(), deadline=10)
            origin = await slot.call("step", "origin", deadline=10)
            assert origin.feedback == str(server.pid) != str(slot.pid)
            assert (await slot.call("step", "count", deadline=10)).feedback == "x"  # one load
    assert LOADED_IN == []


@run_async
async def test_what_preloading_raises_is_said_by_every_slot():
    with closing(Forkserver(EmptyHanded())) as server:
        for _ in range(2):
            with pytest.raises(DataMissing, match="no data here"):
                await Slot.start(server, 30)
