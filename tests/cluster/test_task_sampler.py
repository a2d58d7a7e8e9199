"""The task sampler: no task lost, none trained twice, the same order after a resume."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from hindsight.cluster.task_sampler import TaskSampler
from hindsight.envs.tasks import TaskSpec

TASKS = [TaskSpec(id=f"t{i}", env="toy", kind="k", split="train") for i in range(7)]


def test_every_epoch_visits_each_task_once_in_a_new_order() -> None:
    sampler = TaskSampler(TASKS, seed=3)
    visited = [sampler.task(sampler.admit()).id for _ in range(14)]
    assert sorted(visited[:7]) == sorted(visited[7:]) == sorted(task.id for task in TASKS)
    assert visited[:7] != visited[7:]


def test_a_returned_group_comes_again_before_new_ones() -> None:
    sampler = TaskSampler(TASKS, seed=0)
    first, second = sampler.admit(), sampler.admit()
    sampler.requeue(first)
    assert sampler.admit() == first
    sampler.mark_trained(first)
    sampler.mark_trained(second)
    assert sampler.trained == 2
    assert sampler.admit() == 2


@given(st.lists(st.sampled_from(["admit", "train", "fail", "resume"]), max_size=60), st.integers(0, 5))
def test_no_ordinal_is_lost_or_trained_twice(events: list[str], seed: int) -> None:
    sampler, trained = TaskSampler(TASKS, seed), []
    for event in events:
        waiting = sorted(sampler.outstanding)
        if event == "admit":
            sampler.admit()
        elif event == "train" and waiting:
            sampler.mark_trained(waiting[0])
            trained.append(waiting[0])
        elif event == "fail" and waiting:
            sampler.requeue(waiting[-1])
        elif event == "resume":
            fresh = TaskSampler(TASKS, seed)
            fresh.restore(json.loads(json.dumps(sampler.state())))
            sampler = fresh
    assert len(trained) == len(set(trained)) == sampler.trained
    assert sorted([*trained, *sampler.returned, *sampler.outstanding]) == list(range(sampler.next))
