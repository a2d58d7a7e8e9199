"""The task sampler: no task lost, none trained twice, the same order after a resume."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.cluster.task_sampler import TaskSampler
from hindsight.envs.tasks import TaskSpec

TASKS = [TaskSpec(id=f"t{i}", env="toy", kind="k", split="train") for i in range(7)]


def resumed(sampler: TaskSampler) -> TaskSampler:
    """Another sampler with its state, by way of a checkpoint."""
    fresh = TaskSampler(TASKS, sampler.seed, set(sampler.aside))
    fresh.restore(json.loads(json.dumps(sampler.state())))
    return fresh


def epoch(sampler: TaskSampler, number: int) -> list[str]:
    """The tasks of an epoch, in order."""
    return [sampler.task(ordinal).id for ordinal in range(7 * number, 7 * number + 7)]


def test_every_epoch_visits_each_task_once_in_a_new_order() -> None:
    sampler = TaskSampler(TASKS, seed=3)
    visited = [sampler.task(sampler.admit()).id for _ in range(14)]
    assert sorted(visited[:7]) == sorted(visited[7:]) == sorted(task.id for task in TASKS)
    assert visited[:7] != visited[7:]


def test_the_tasks_to_come_are_those_handed_out_next() -> None:
    sampler = TaskSampler(TASKS, seed=3)
    for _ in range(2 * len(TASKS)):
        coming = [task.id for task in sampler.coming()]
        assert sorted(coming) == sorted(task.id for task in TASKS)
        left = len(TASKS) - sampler.next % len(TASKS)
        assert coming[:left] == [sampler.task(sampler.next + index).id for index in range(left)]
        assert sampler.task(sampler.admit()).id == coming[0]


def test_a_lost_group_comes_again_after_the_others_of_its_epoch() -> None:
    sampler = TaskSampler(TASKS, seed=0)
    first, second = sampler.admit(), sampler.admit()
    assert not sampler.requeue(first, most=2)
    assert not sampler.requeue(second)
    sampler = resumed(sampler)
    assert [sampler.admit() for _ in range(8)] == [2, 3, 4, 5, 6, first, second, 7]
    assert resumed(sampler).interrupted == [2, 3, 4, 5, 6, first, second, 7]  # in flight: in the same order
    assert not sampler.requeue(second)  # again: behind the next epoch
    assert [sampler.admit() for _ in range(7)] == [8, 9, 10, 11, 12, 13, second]


def test_a_task_that_loses_its_groups_is_set_aside_and_skipped() -> None:
    sampler = TaskSampler(TASKS, seed=0)
    bad = sampler.task(sampler.admit()).id
    assert not sampler.requeue(0, most=2)
    for ordinal in [sampler.admit() for _ in range(6)]:
        sampler.mark_trained(ordinal)
    assert sampler.admit() == 0
    sampler = resumed(sampler)  # the first loss counts, and it is played first: the run was interrupted
    assert sampler.admit() == 0 and sampler.requeue(0, most=2) and sampler.aside == {bad}
    for number in (1, 2):
        seen = [sampler.task(sampler.admit()).id for _ in range(6)]
        assert seen == [task for task in epoch(sampler, number) if task != bad]
    lifted = TaskSampler(TASKS, seed=0)
    lifted.restore(sampler.state())
    lifted.interrupted.clear()  # those 12
    assert lifted.next in (20, 21)
    seen = [lifted.task(lifted.admit()).id for _ in range(28 - lifted.next)]
    assert seen[-7:] == epoch(lifted, 3)


def test_a_task_that_trains_again_has_a_clean_record() -> None:
    sampler = TaskSampler(TASKS[:1], seed=0)
    for _ in range(3):
        assert not sampler.requeue(sampler.admit(), most=2)
        sampler.mark_trained(sampler.admit())
    assert sampler.trained == 3 and not sampler.aside
    sampler.requeue(sampler.admit())  # not its fault
    assert not sampler.requeue(sampler.admit(), most=2) and sampler.requeue(sampler.admit(), most=2)


def test_a_task_in_flight_twice_is_set_aside_once() -> None:
    sampler = TaskSampler(TASKS[:2], seed=0)
    flying = [sampler.admit() for _ in range(6)]
    bad = sampler.task(flying[0]).id
    told = [sampler.requeue(ordinal, most=1) for ordinal in flying if sampler.task(ordinal).id == bad]
    assert told == [True, False, False] and sampler.lost == []


EVENTS = st.lists(st.sampled_from(["admit", "train", "fail", "own fault", "resume"]), max_size=80)


@given(EVENTS, st.integers(0, 5))
def test_no_ordinal_is_lost_or_trained_twice(events: list[str], seed: int) -> None:
    """Groups end in any order."""
    sampler, trained = TaskSampler(TASKS, seed), list[int]()
    for event in events:
        waiting = sorted(sampler.outstanding)
        if event == "admit" and len(sampler.aside) < 6:
            sampler.admit()
        elif event == "train" and waiting:
            sampler.mark_trained(waiting[0])
            trained.append(waiting[0])
        elif event == "fail" and waiting:
            sampler.requeue(waiting[-1])
        elif event == "own fault" and waiting and len(sampler.aside) < 5:
            sampler.requeue(waiting[-1], most=2)
        elif event == "resume":
            sampler = resumed(sampler)
    pending = [*sampler.interrupted, *(ordinal for _, ordinal in sampler.lost), *sampler.outstanding]
    assert len(trained) == len(set(trained)) == sampler.trained
    assert len(pending) == len(set(pending)) and not {*trained} & {*pending}
    gone = set(range(sampler.next)) - {*trained, *pending}
    assert {sampler.task(ordinal).id for ordinal in gone} <= sampler.aside


@settings(max_examples=40)
@given(
    st.sets(st.sampled_from([task.id for task in TASKS]), max_size=3),
    st.lists(st.booleans(), max_size=20),
    st.integers(0, 5),
    st.integers(0, 60),
)
def test_every_task_is_trained_once_per_epoch_or_is_set_aside(
    bad: set[str], outages: list[bool], seed: int, broken: int
) -> None:
    """Tasks that always fail, and others that fail now and then by an outage. Resuming changes nothing."""

    def play(breaks_at: int | None) -> tuple[list[int], TaskSampler]:
        sampler, trained = TaskSampler(TASKS, seed), list[int]()
        failing = iter(outages)
        for turn in range(70):
            if turn == breaks_at:
                sampler = resumed(sampler)
            ordinal = sampler.admit()
            if sampler.task(ordinal).id in bad:
                sampler.requeue(ordinal, most=2)
            elif next(failing, False):
                sampler.requeue(ordinal)
            else:
                sampler.mark_trained(ordinal)
                trained.append(ordinal)
        return trained, sampler

    trained, sampler = play(None)
    assert sampler.aside == bad and sampler.lost == []
    whole = 7 * (sampler.next // 7)
    good = [ordinal for ordinal in range(whole) if sampler.task(ordinal).id not in bad]
    assert sorted(ordinal for ordinal in trained if ordinal < whole) == good
    assert play(broken) == (trained, sampler)


@settings(max_examples=40)
@given(st.integers(0, 6), st.integers(0, 9))
def test_tasks_that_fail_never_take_the_turns_of_others(number: int, seed: int) -> None:
    """All groups of the epoch in which one is lost come before it; if it is lost again, all of the next."""
    sampler = TaskSampler(TASKS, seed)
    bad = set(epoch(sampler, 0)[:number])
    played, lost = list[int](), dict[int, int]()  # ordinals; when they were lost for the last time
    for _ in range(60):
        ordinal = sampler.admit()
        if ordinal in lost:
            newest = max(played[: lost[ordinal] + 1])
            end = 7 * (newest // 7 + 1) if newest % 7 < 6 else newest + 8
            assert {*range(end)} <= {*played}
        played.append(ordinal)
        if sampler.task(ordinal).id in bad:
            sampler.requeue(ordinal)
            lost[ordinal] = len(played) - 1
        else:
            sampler.mark_trained(ordinal)
