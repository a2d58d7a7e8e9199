"""Who notices a lost process, and what its successor gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from hindsight.cluster.heal import STARTS, Restarts, Starts, Watched, keep
from hindsight.cluster.train import LOSSES, Trainer
from hindsight.cluster.turns import Turns
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import ActorLost, ActorUnavailable, RemoteDefect, RemoteTimeout
from hindsight.learner.group import answers
from hindsight.learner.rank import LearnerError, RanksLost


class Mortal:
    """An actor whose process ends `lives` times; the new one is there after two calls."""

    def __init__(self, lives: int) -> None:
        self.lives, self.away = lives, 0

    def __getattr__(self, method: str) -> Any:
        async def watch() -> None:
            if self.lives < 0:
                await asyncio.Event().wait()
            self.lives -= 1
            self.away = 2
            raise ActorDiedError() if self.lives < 0 else ActorUnavailableError("away", None)

        async def ready() -> None:
            if self.away:
                self.away -= 1
                raise ActorUnavailableError("away", None)

        return SimpleNamespace(remote={"watch": watch, "ready": ready}[method])


def test_a_new_process_gets_what_it_lacks_and_the_last_loss_ends_the_run() -> None:
    said, brought = list[str](), list[str]()
    restarts = Restarts(say=said.append)

    async def run() -> None:
        engine, worker = Mortal(3), Mortal(1)

        async def bring(name: str) -> None:
            assert not engine.away
            brought.append(name)

        watched = [Watched("engine", engine, lambda: bring("engine"))]
        await Watchdog(60).guard(asyncio.sleep(30), keep(watched, restarts, 60.0))
        raise AssertionError(worker)

    with pytest.raises(ActorLost):
        asyncio.run(run())
    assert brought == ["engine"] * 4 and len(said) == 3  # the first: it might have been replaced before
    assert restarts.metrics()["restarts/engine"] == 3.0


@asynccontextmanager
async def changing() -> AsyncIterator[None]:
    yield


def trainer(lives: int, steps: int) -> Any:
    """A trainer whose steps only count, and whose ranks are lost at step 2 `lives` times."""
    events = list[str]()

    async def abandon() -> None:
        events.append("abandon")

    class Ranks:
        async def start(self) -> None:
            events.append("start")

        def stop(self) -> None:
            events.append("stop")

    ranks = Ranks()
    run = SimpleNamespace(
        config=Config(),
        actors=SimpleNamespace(
            trained=lambda: {"learner": ranks},
            turns=Turns(),
            restarts=Restarts(),
            worker=SimpleNamespace(abandon=SimpleNamespace(remote=abandon)),
        ),
        state=SimpleNamespace(step=0, version=5),
        view=SimpleNamespace(say=events.append),
        now=lambda *_: None,
        changing=changing,
    )
    made: Any = Trainer(run)  # type: ignore[arg-type]

    async def train_on() -> str:
        nonlocal lives
        while run.state.step < steps:
            if run.state.step == 2 and lives:
                lives -= 1
                run.state.version += 1
                raise RanksLost("rank 0 has ended")
            run.state.step += 1
        return "trained"

    async def rewind() -> None:
        run.state.step, run.state.version = 1, 3

    made.train_on, run.rewind = train_on, rewind
    return made, events, run


def test_lost_ranks_start_again_at_the_last_checkpoint() -> None:
    made, events, run = trainer(lives=2, steps=4)
    assert asyncio.run(made.train()) == "trained"
    assert [event for event in events if event in ("start", "stop")] == ["stop", "start"] * 2
    assert events.count("abandon") == 2  # their episodes would take the places of those that are requeued
    assert run.actors.restarts.counts == {"learner": 2}
    assert run.state.version == 7  # an engine refuses a version that it had


def test_ranks_that_are_lost_at_the_same_step_again_and_again_end_the_run() -> None:
    made, events, _ = trainer(lives=99, steps=4)
    with pytest.raises(RanksLost, match="rank 0 has ended"):
        asyncio.run(made.train())
    assert events.count("start") == LOSSES


def test_everything_starts_again_as_long_as_that_leads_on() -> None:
    lost = ActorLost("engine and learner")
    starts = Starts(newest=5, opened=True)  # resumed from step 5
    assert [starts.again(lost, 5) for _ in range(STARTS)] == [True] * STARTS
    assert starts.again(lost, 6) and starts.vain == 0
    assert [starts.again(lost, 6) for _ in range(STARTS + 1)] == [True] * STARTS + [False]
    assert Starts(newest=-1, opened=True).again(lost, -1)  # a new run begins anew
    slow = RemoteTimeout("raise rollout.timeout")
    assert Starts(newest=5, opened=True).again(slow, 6)
    assert not Starts(newest=5, opened=True).again(slow, 5)


def test_actors_that_never_were_there_are_not_started_again_unless_a_process_was_lost() -> None:
    """A model that does not fit, or settings that are wrong, fail each time."""
    for error, again in (
        (ActorLost("its creation failed"), False),
        (RemoteTimeout("raise cluster.start_timeout"), False),
        (ActorUnavailable("an engine is being replaced"), True),
        (RanksLost("rank 0 has ended"), True),
    ):
        assert Starts(newest=-1).again(error, -1) == again


def test_ranks_that_share_a_gpu_in_turn_are_not_replaced() -> None:
    made, events, run = trainer(lives=1, steps=4)
    run.actors.turns.wake["learner"] = lambda: None
    with pytest.raises(RanksLost):
        asyncio.run(made.train())
    assert "start" not in events


def test_ranks_that_fail_because_another_one_is_lost_are_lost_as_well() -> None:
    async def fails() -> None:
        raise RemoteDefect("connection closed by peer")

    async def is_lost() -> None:
        await asyncio.sleep(0.05)
        raise ActorLost("rank 1 has ended")

    with pytest.raises(RanksLost, match="rank 1 has ended"):
        asyncio.run(answers([fails(), is_lost()]))
    with pytest.raises(LearnerError, match="closed by peer") as caught:
        asyncio.run(answers([fails(), asyncio.sleep(0)]))
    assert not isinstance(caught.value, RanksLost)
