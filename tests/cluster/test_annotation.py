"""What is asked about a group while it is played: when, how often, and what is left when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from hindsight.cluster.annotation import Annotation, Inquiry
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.runtime.remote import ActorLost, RemoteTimeout
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.needs import Needs
from hindsight.learner.samples import OpenGroup, SampleGroup
from hindsight.rollout.types import Failure, Group, TokenSequence, Trajectory, Tried, Turn

TASK = TaskSpec("t", "toy", "open", "train")
SLOW = Failure("engine", "slow", "t")
Act = Callable[[SampleGroup, int], Awaitable[None]]


def episode(success: bool) -> Trajectory:
    result = StepResult(Observation("later"), "", float(success), success, False, success)
    turn = Turn(0, 1, 2, None, Observation("now"), "", None, False, result)
    tokens = TokenSequence(np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros(2, np.int32))
    return Trajectory(TASK, (tokens,), (turn,), success, float(success), "terminated")


WON, LOST = episode(True), [episode(False) for _ in range(4)]


def mixed(group: Group) -> bool:
    return len({trajectory.success for trajectory in group.trajectories}) > 1


class Asked:
    """An inquiry that notes which episodes it was asked about, in order."""

    def __init__(self, needs: Needs = "trajectory", compares: bool = False, act: Act | None = None) -> None:
        self.numbers: list[int] = []
        self.act = act
        self.inquiry = Inquiry(self.ask, needs, compares)

    async def ask(self, group: SampleGroup, about: Sequence[int]) -> None:
        for index in about:
            trajectory = group.group.trajectories[index]
            self.numbers.append(next(at for at, one in enumerate([WON, *LOST]) if one is trajectory))
            group.trajectories[index].hints[0] = np.array([self.numbers[-1]])
            if self.act:
                await self.act(group, self.numbers[-1])


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def play(asked: Asked, *ends: tuple[int, Trajectory | Failure]) -> tuple[SampleGroup, list[list[int]]]:
    """The group as its episodes end in this order; and who has been asked about after each end."""
    seen = []

    async def go() -> SampleGroup:
        group = OpenGroup(3, TASK, len(ends))
        async with Annotation(group, [asked.inquiry], mixed) as annotation:
            for index, outcome in ends:
                group.end(index, Tried(outcome))
                annotation.go_on()
                await settle()
                seen.append(list(asked.numbers))
            return await annotation.end()

    return asyncio.run(go()), seen


def test_a_trajectory_is_asked_about_as_it_ends() -> None:
    group, seen = play(Asked(), (1, LOST[0]), (3, SLOW), (0, WON), (2, LOST[1]))
    assert seen == [[1], [1], [1, 0], [1, 0, 2]]
    # Hints are where the trajectories are in the whole group, wherever they were when they were asked about.
    assert [one.hints[0].tolist() for one in group.trajectories] == [[0], [1], [2]]
    assert group.failures == [SLOW] and group.group.failures == (SLOW,)


def test_a_group_that_teaches_nothing_yet_waits_until_its_returns_differ() -> None:
    _, seen = play(Asked(compares=True), (1, LOST[0]), (2, LOST[1]), (0, WON), (3, LOST[2]))
    assert seen == [[], [], [0, 1, 2], [0, 1, 2, 3]]
    _, seen = play(Asked(compares=True), (1, LOST[0]), (0, LOST[1]))
    assert seen == [[], []]
    _, seen = play(Asked(compares=True), (0, SLOW), (1, LOST[0]), (2, WON))
    assert seen == [[], [], [1, 0]]


def test_a_whole_group_is_asked_about_at_once() -> None:
    """So that candidates of all samples share the learner's micro-batches, as anchors share their hints."""
    sizes: list[int] = []

    async def count(group: SampleGroup, number: int) -> None:
        sizes.append(len(group.group.trajectories))

    _, seen = play(Asked("group", act=count), (1, LOST[0]), (0, WON), (2, SLOW))
    assert seen == [[], [], [0, 1]] and sizes == [2, 2]


def test_a_failed_inquiry_counts_once_and_asks_no_more() -> None:
    """One that was under way continues, and what it writes is kept."""

    async def fail(group: SampleGroup, number: int) -> None:
        if number < 2:
            raise RemoteTimeout("too slow")
        raise AssertionError("not asked any more")

    asked = Asked(act=fail)
    group, seen = play(asked, (0, WON), (1, LOST[0]), (2, LOST[1]))
    assert seen == [[0]] * 3
    assert [(failure.kind, failure.message) for failure in group.failures] == [("teacher", "too slow")]

    async def both(group: SampleGroup, number: int) -> None:
        await settle()
        raise RemoteTimeout("too slow")

    async def go() -> list[Failure]:
        open_group = OpenGroup(3, TASK, 2)
        async with Annotation(open_group, [Asked(act=both).inquiry], mixed) as annotation:
            for index in range(2):
                open_group.end(index, Tried(LOST[index]))
                annotation.go_on()
            return (await annotation.end()).failures

    assert len(asyncio.run(go())) == 1


@pytest.mark.parametrize("error", [ActorLost("dead"), KeyError("bug")])
def test_other_errors_end_the_group_and_what_is_under_way(error: Exception) -> None:
    cancelled = []

    async def act(group: SampleGroup, number: int) -> None:
        if number == 0:
            raise error
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(type(error)):
        play(Asked(act=act), (1, LOST[0]), (0, WON))
    assert cancelled == [1]


def test_an_abandoned_group_is_not_asked_about_any_more() -> None:
    cancelled = []

    async def act(group: SampleGroup, number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(number)

    async def produce() -> None:
        group = OpenGroup(3, TASK, 2)
        async with Annotation(group, [Asked(act=act).inquiry], mixed) as annotation:
            group.end(0, Tried(WON))
            annotation.go_on()
            await asyncio.sleep(60)  # the other episode

    async def go() -> None:
        producing = asyncio.create_task(produce())
        await asyncio.sleep(0.01)
        producing.cancel()
        await asyncio.gather(producing, return_exceptions=True)
        assert cancelled == [0]

    asyncio.run(go())


def test_nothing_is_asked_before_the_reference_solution_is_known() -> None:
    asked = Asked()

    async def go() -> SampleGroup:
        group = OpenGroup(3, TASK, 1, awaits_reference=True)
        async with Annotation(group, [asked.inquiry], mixed) as annotation:
            group.end(0, Tried(WON))
            annotation.go_on()
            await settle()
            assert asked.numbers == []
            group.solve(Tried(("look",), (SLOW,)))
            annotation.go_on()
            return await annotation.end()

    group = asyncio.run(go())
    assert asked.numbers == [0] and group.group.reference == ("look",) and group.group.retried == (SLOW,)
