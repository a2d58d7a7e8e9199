"""The prompt ledger: no task lost, none trained twice, the same order after a resume."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from hindsight.cluster.task_sampler import PromptLedger
from hindsight.envs.tasks import TaskSpec

TASKS = [TaskSpec(id=f"t{i}", env="toy", kind="k", split="train") for i in range(7)]


def test_every_epoch_visits_each_task_once_in_a_new_order() -> None:
    ledger = PromptLedger(TASKS, seed=3)
    visited = [ledger.task(ledger.admit()).id for _ in range(14)]
    assert sorted(visited[:7]) == sorted(visited[7:]) == sorted(task.id for task in TASKS)
    assert visited[:7] != visited[7:]


def test_a_returned_group_comes_again_before_new_ones() -> None:
    ledger = PromptLedger(TASKS, seed=0)
    first, second = ledger.admit(), ledger.admit()
    ledger.give_back(first)
    assert ledger.admit() == first
    ledger.mark_trained(first)
    ledger.mark_trained(second)
    assert ledger.trained == 2
    assert ledger.admit() == 2


@given(st.lists(st.sampled_from(["admit", "train", "fail", "resume"]), max_size=60), st.integers(0, 5))
def test_no_ordinal_is_lost_or_trained_twice(events: list[str], seed: int) -> None:
    ledger, trained = PromptLedger(TASKS, seed), []
    for event in events:
        waiting = sorted(ledger.outstanding)
        if event == "admit":
            ledger.admit()
        elif event == "train" and waiting:
            ledger.mark_trained(waiting[0])
            trained.append(waiting[0])
        elif event == "fail" and waiting:
            ledger.give_back(waiting[-1])
        elif event == "resume":
            fresh = PromptLedger(TASKS, seed)
            fresh.restore(json.loads(json.dumps(ledger.state())))
            ledger = fresh
    assert len(trained) == len(set(trained)) == ledger.trained
    assert sorted([*trained, *ledger.returned, *ledger.outstanding]) == list(range(ledger.next))
