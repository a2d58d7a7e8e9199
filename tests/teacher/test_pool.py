"""Scoring by several replicas: the same answers as by one, side by side, and all of them in step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorUnavailableError

from hindsight.envs.runtime.remote import AnswerLost, RemoteTimeout
from hindsight.rollout.segment import SegmentHandle, SegmentUnreachable
from hindsight.rollout.types import Span
from hindsight.rollout.weights import WeightSet
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.pool import ScorerPool, spread
from hindsight.teacher.scorer import Outdated, Scored


def request(trajectory: int, cut: int, tail: int) -> ScoreRequest:
    return ScoreRequest(trajectory, 0, 0, cut, np.arange(tail, dtype=np.int32), Span(0, tail))


class Replica:
    """An actor's handle: answers with the request's own numbers, after a while.

    Its weights are one number, half of it from the student in a sync; `lose` replaces its process.
    """

    def __init__(self, seconds: float = 0.0, context: int = 100) -> None:
        self.seconds, self.context, self.calls, self.busy = seconds, context, list[str](), False
        self.version, self.weights, self.away = 0, 0.0, 0

    def lose(self) -> None:
        """The process is replaced by one with the weights of the start; two calls do not reach it."""
        self.version, self.weights, self.away = 0, 0.0, 2

    def require(self, version: int | None) -> None:
        if version not in (None, self.version):
            raise Outdated(f"has {self.version}")

    def _load(self, weights: WeightSet, whole: bool = True, since: int | None = None) -> None:
        if not whole:
            self.require(since)
        given: Any = weights.data
        if given is None:
            raise SegmentUnreachable("/proc/1/fd/2 cannot be opened")
        self.weights = given if whole else (self.weights + given) / 2
        self.version = weights.version

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            self.calls.append(method)
            if self.away:
                self.away -= 1
                raise ActorUnavailableError("it is being replaced", None)
            if method == "ready":
                return {"context": self.context, "version": self.version}
            if method == "load_weights":
                self._load(*args)
            if method == "snapshot":
                self.require(args[0])
                return self.version, (), "checksum"
            if method == "load":
                self.version, self.weights = 7, 0.75
                return 7
            if method == "score":
                self.require(args[2])
                assert not self.busy, "two calls at once"
                self.busy = True
                await asyncio.sleep(self.seconds)
                self.busy = False
                return [Scored(one.tail + 1000.0 * one.trajectory, np.zeros((0, 0))) for one in args[1]]
            return None

        def snapshot(version: int) -> tuple[Any, float]:
            return call(version), self.weights

        if method == "snapshot":
            return SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=snapshot))
        return SimpleNamespace(remote=call)


def pool(*replicas: Replica, timeout: float = 10.0) -> ScorerPool:
    return ScorerPool("teacher", replicas, timeout, lambda role: nullcontext())


def sent(version: int, weights: Any) -> WeightSet:
    return WeightSet(version, (), "checksum", weights)


requests = st.lists(
    st.builds(request, st.integers(0, 6), st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=25
)


@given(requests, st.integers(1, 5))
def test_replicas_answer_as_one_would(asked: list[ScoreRequest], count: int) -> None:
    async def run() -> list[Scored]:
        return (await pool(*(Replica() for _ in range(count))).score([], asked, "scoring"))[0]

    for one, found in zip(asked, asyncio.run(run()), strict=True):
        np.testing.assert_equal(found.logprobs, one.tail + 1000.0 * one.trajectory)


@given(requests, st.integers(1, 5))
def test_a_trajectory_stays_together_and_no_part_is_empty(asked: list[ScoreRequest], parts: int) -> None:
    made = spread(asked, parts)
    assert sorted(index for part in made for index in part) == list(range(len(asked)))
    owners = [{asked[index].trajectory for index in part} for part in made]
    assert all(owners) and sum(map(len, owners)) == len(set().union(*owners))
    assert len(made) == min(parts, len({one.trajectory for one in asked}))


def test_parts_are_about_equal() -> None:
    asked = [request(index, cut, 10) for index, cut in enumerate([90, 50, 40, 10, 10])]
    loads = [sum(asked[i].cut + 10 for i in part) for part in spread(asked, 2)]
    assert sorted(loads) == [120, 130]


def test_groups_are_scored_side_by_side() -> None:
    async def run() -> tuple[float, float]:
        clock = asyncio.get_running_loop().time
        one, two = Replica(0.2), Replica(0.2)
        both = pool(one, two)
        began = clock()
        answers = await asyncio.gather(*(both.score([], [request(0, 5, 3)], "scoring") for _ in range(4)))
        assert one.calls.count("score") == two.calls.count("score") == 2
        return clock() - began, sum(end - start for _, worked in answers for start, end in worked)

    passed, busy = asyncio.run(run())
    assert busy >= 0.8 and passed < busy  # four calls, two at a time


def test_all_replicas_follow_and_one_is_saved(tmp_path: Path) -> None:
    async def run(replicas: list[Replica]) -> int:
        both = pool(*replicas)
        await both.ready(10.0)
        await both.load_weights(sent(1, 1.0), True)
        await both.save(tmp_path / "teacher.safetensors")
        await both.load(tmp_path / "teacher.safetensors")
        return both.context

    replicas = [Replica(context=70), Replica(context=60)]
    assert asyncio.run(run(replicas)) == 60
    assert replicas[0].calls == ["ready", "load_weights", "save", "load", "snapshot"]
    assert replicas[1].calls == ["ready", "load_weights", "load"]


def test_new_weights_wait_for_a_group_that_is_being_scored() -> None:
    async def run() -> list[str]:
        own = Replica(seconds=0.1)
        one = pool(own)
        scoring = asyncio.create_task(one.score([], [request(0, 1, 1)], "scoring"))
        await asyncio.sleep(0.02)
        await one.load_weights(sent(1, 1.0), True)
        assert scoring.done() or not own.busy
        await scoring
        return own.calls

    assert asyncio.run(run()) == ["score", "load_weights"]


@pytest.mark.parametrize("moment", ["syncs", "is saved", "scores", "waits", "keeps", "keeps, later"])
def test_a_replaced_replica_gets_the_weights_of_the_last_sync(moment: str, tmp_path: Path) -> None:
    """A moving average of the student's 1, 1 and 0, half of each: 0.5, 0.75, 0.375."""

    async def run() -> None:
        own, other, replaced = Replica(), Replica(), list[str]()

        class LostOnce(Replica):
            def _load(self, *args: Any) -> None:
                super()._load(*args)
                if moment.startswith("keeps") and args[0].version == 3 and not replaced:
                    self.lose()  # before it has told the result
                    self.away = 0 if moment == "keeps, later" else self.away

        own = LostOnce()
        both = ScorerPool(
            "teacher", [own, other], 10.0, lambda role: nullcontext(), lambda *note: replaced.append(note[0])
        )
        await both.ready(10.0)
        await both.load_weights(sent(1, 1.0), False)
        await both.load_weights(sent(2, 1.0), False)
        if moment in ("syncs", "waits"):
            own.lose()
        own.away = 0 if moment == "waits" else own.away  # the new process is there before anybody asks
        await both.load_weights(sent(3, 0.0), False)
        if moment in ("is saved", "scores"):
            own.lose()
        if moment == "is saved":
            await both.save(tmp_path / "teacher.safetensors")
        await both.score([], [request(0, 1, 1), request(1, 1, 1)], "scoring")
        assert (own.weights, own.version) == (other.weights, other.version) == (0.375, 3)
        assert replaced == ["teacher"]

    asyncio.run(run())


def shared(version: int, weights: Any) -> WeightSet:
    """As `sent`, in the learner's memory too."""
    handle = SegmentHandle("boot", "/proc/1/fd/2", 3, 64)
    return WeightSet(version, (), "checksum", weights, handle)


def test_the_learner_keeps_what_a_new_process_would_need() -> None:
    async def run() -> list[int | None]:
        made, kept = pool(Replica()), list[int | None]()
        for weights, whole in ((shared(3, 0.5), True), (shared(4, 0.5), False), (sent(5, 0.5), True)):
            await made.load_weights(weights, whole)
            kept.append(made.kept)
        return [pool(Replica()).kept, *kept]

    assert asyncio.run(run()) == [None, 3, None, None]  # an average is kept by the pool


def test_weights_that_went_with_the_learner_are_missed_only_until_there_are_others(tmp_path: Path) -> None:
    async def run() -> None:
        one, weights = Replica(), shared(3, 0.5)
        made = pool(one)
        await made.load_weights(weights, True)
        made._kept = replace(weights, data=None)  # no longer to be had
        one.lose()
        with pytest.raises(AnswerLost, match="restoring the teacher: /proc/1/fd/2 cannot be opened"):
            await made.score([], [request(0, 5, 3)], "scoring")
        one.lose()
        await made.load_weights(shared(4, 0.25), True)
        one.lose()
        await made.load(tmp_path)
        assert (one.version, one.weights, made.version) == (7, 0.75, 7)

    asyncio.run(run())


def test_the_turn_lasts_until_every_replica_has_answered() -> None:
    async def run() -> None:
        fails, works = Replica(), Replica(seconds=0.1)
        fails.calls = None  # type: ignore[assignment]
        held = False

        @asynccontextmanager
        async def turn(role: str) -> AsyncIterator[None]:
            nonlocal held
            try:
                yield
            finally:
                held = works.busy

        both = ScorerPool("teacher", [fails, works], 10.0, turn)
        with pytest.raises(AttributeError):
            await both.score([], [request(0, 1, 1), request(1, 1, 1)], "scoring")
        assert not held and works.calls == ["score"]

    asyncio.run(run())


def test_a_replica_that_missed_its_deadline_is_used_again() -> None:
    async def run() -> None:
        slow = Replica(seconds=0.3)
        own = pool(slow, timeout=0.05)
        with pytest.raises(RemoteTimeout, match=r"scoring group 3 took longer.*teacher.timeout"):
            await own.score([], [request(0, 1, 1)], "scoring group 3")
        slow.seconds, slow.busy = 0.0, False
        await own.score([], [request(0, 1, 1)], "scoring group 4")

    asyncio.run(run())
