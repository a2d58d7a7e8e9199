"""What is a task's own fault, when a run stops, and which tasks are set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.cluster.failures import (
    LOST_ROUNDS,
    RECENT_STEPS,
    SET_ASIDE_AFTER,
    BudgetSpent,
    FailureBudget,
    Losses,
    NothingTrained,
    RunError,
    own_fault,
    typical,
)
from hindsight.cluster.set_aside import SetAside, SetAsideTasks
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.types import Failure, FailureKind, Group, Trajectory

WON = Trajectory(TaskSpec("t", "toy", "k", "train"), (), (), True, 1.0, "terminated")


def failures(*kinds: FailureKind, task: str = "t") -> list[Failure]:
    return [Failure(kind, f"{kind} {number}", task) for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "trajectories", "limit"),
    [
        (("env_died", "env_error", "env_timeout", "env_died"), 0, SET_ASIDE_AFTER),
        (("env_error",), 1, SET_ASIDE_AFTER),
        (("env_error",) * 3, 1, SET_ASIDE_AFTER),
        (("env_error",), 3, None),  # teacher or judge took the rest
        (("env_error", "teacher"), 1, None),
        (("engine",) * 4, 0, None),
        (("engine", "engine", "env_died"), 0, None),
        (("lost",), 0, None),
        (("prompt",) * 4, 0, 1),
    ],
)
def test_a_task_answers_for_its_environment_alone(
    kinds: tuple[FailureKind, ...], trajectories: int, limit: int | None
) -> None:
    group = Group(0, WON.task, (WON,) * trajectories, tuple(failures(*kinds)))
    assert own_fault(group) == limit


def test_the_typical_failure_is_the_last_of_the_most_frequent_kind() -> None:
    assert (
        typical(failures("engine", "env_died", "engine", "env_died", "engine", "lost")).message == "engine 4"
    )


def test_the_budget_is_a_share_of_recent_episodes() -> None:
    """2 episodes a step: 40 in 20 steps, of which a tenth may fail."""
    budget = FailureBudget(0.1, episodes=2)
    for step in range(0, 200, 10):  # 2 in each 20 steps, 20 in all
        budget.add(step, 2, failures("engine"))
    assert budget.counts == {"engine": 20}
    budget.add(201, 2, failures("env_died", "env_died"))  # with those of steps 190 and 201: 3
    budget.add(202, 2, failures("engine"))
    match = r"5 failures \(.*\) in the last 20 steps: more than failure_budget = 0.1 of their 40 episodes.*"
    with pytest.raises(BudgetSpent, match=match + r"judge on task x: judge 0\. Repair"):
        budget.add(203, 2, failures("judge", task="x"))


@given(st.integers(1, 64), st.integers(0, 500), st.integers(0, 64))
def test_the_past_costs_nothing(episodes: int, before: int, failed: int) -> None:
    """What a run may fail in a step depends on the last steps alone."""

    def stops(*steps: int) -> bool:
        budget = FailureBudget(0.2, episodes=episodes)
        try:
            for step in steps:
                budget.add(step, episodes, failures(*["engine"] * failed))
        except BudgetSpent:
            return True
        return False

    assert stops(before + RECENT_STEPS) == stops(before, before + RECENT_STEPS) or failed > 4 * episodes


def test_an_evaluation_is_judged_by_its_own_episodes() -> None:
    budget = FailureBudget(0.2, episodes=2)
    budget.add(0, 120, failures(*["engine"] * 24))
    with pytest.raises(BudgetSpent, match=r"25 failures.*of their 122 episodes"):
        budget.add(1, 2, failures("engine"))


def test_tasks_that_are_set_aside_and_long_prompts_cost_nothing() -> None:
    aside: set[str] = set()
    budget = FailureBudget(0.1, episodes=1, excused=aside)
    budget.add(0, 1, failures("env_died", "env_died", task="bad"))
    aside.add("bad")  # what it has cost before is refunded too
    budget.add(1, 1, failures("env_died", task="bad"))
    budget.add(2, 1, failures("prompt", "prompt", "prompt"))
    budget.add(3, 1, failures("engine", "engine"))
    assert budget.counts == {"env_died": 3, "prompt": 3, "engine": 2}
    with pytest.raises(BudgetSpent, match=r"^3 failures"):
        budget.add(4, 1, failures("engine"))


def test_a_step_loses_its_groups_three_times_and_no_more() -> None:
    losses = Losses(2, first=False)
    for _ in range(2 * LOST_ROUNDS - 1):
        losses.add(failures("engine", "engine"), set_aside=False, taken=1)
        losses.add(failures("env_died"), set_aside=True, taken=1)  # cannot happen again
        losses.add(failures("prompt"), set_aside=True, taken=0)
    counts = "engine 10, env_died 5, prompt 5, lost 1"
    match = rf"lost 6 groups.*num_groups = 2 \({counts}\).*engine, on task t: engine 1"
    with pytest.raises(NothingTrained, match=match):
        losses.add(failures("lost"), set_aside=False, taken=1)


@pytest.mark.parametrize(("groups", "tries"), [(1, 2), (2, 2), (3, 3)])
def test_settings_that_fit_no_task_are_said_at_the_first_step(groups: int, tries: int) -> None:
    losses = Losses(groups, first=True)
    for _ in range(tries - 1):
        losses.add(failures("prompt"), set_aside=True, taken=0)
    with pytest.raises(NothingTrained, match="no task of the first step fits the model's context: prompt 0"):
        losses.add(failures("prompt"), set_aside=True, taken=0)
    for first, taken in ((False, 0), (True, 1)):  # later, or together with a task that fits, it is the task's
        fits = Losses(groups, first)
        for _ in range(9):
            fits.add(failures("prompt"), set_aside=True, taken=taken)


def entry(task: str, kind: str = "env_died") -> SetAside:
    return SetAside(task, kind, "it says […]", 2, 7, "2026-01-01T00:00:00+00:00")


def tasks(number: int) -> list[TaskSpec]:
    return [TaskSpec(f"t{index}", "toy", "k", "train") for index in range(number)]


def test_who_deletes_a_line_lifts_its_task(tmp_path: Path) -> None:
    file = tmp_path / "failures.jsonl"
    held = SetAsideTasks.load(file, tasks(9), resumes=True)
    held.add(entry("t1"))
    held.add(entry("t4"))
    lines = file.read_text().splitlines()
    assert json.loads(lines[0]) == vars(entry("t1")) and len(lines) == 2
    again = SetAsideTasks.load(file, tasks(9), resumes=True)
    assert again.ids == {"t1", "t4"} and again.entries == held.entries
    file.write_text("\n" + lines[1])  # as an editor leaves it
    assert SetAsideTasks.load(file, tasks(9), resumes=True).ids == {"t4"}
    assert SetAsideTasks.load(file, tasks(9), resumes=False).ids == set()
    file.unlink()
    assert SetAsideTasks.load(file, tasks(9), resumes=True).ids == set()


def test_a_prompt_that_was_too_long_is_tried_again_by_a_run_that_resumes(tmp_path: Path) -> None:
    held = SetAsideTasks(tmp_path / "failures.jsonl", tasks(9))
    held.add(entry("t1", "prompt"))
    held.add(entry("t2"))
    again = SetAsideTasks.load(held.file, tasks(9), resumes=True)
    assert again.ids == {"t2"}
    again.write()
    assert [json.loads(line)["task"] for line in held.file.read_text().splitlines()] == ["t2"]


@pytest.mark.parametrize("line", ["t1", "[]", '{"kind": "env_died"}'])
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "failures.jsonl"
    file.write_text(json.dumps(vars(entry("t1"))) + f"\n{line}\n")
    with pytest.raises(RunError, match=r"failures\.jsonl, line 2, is not.*delete the line"):
        SetAsideTasks.load(file, tasks(9), resumes=True)


@pytest.mark.parametrize(
    ("number", "allowed"), [(1, 0), (2, 1), (3, 2), (10, 2), (11, 2), (15, 3), (100, 20)]
)
def test_a_run_goes_on_without_a_fifth_of_its_tasks(tmp_path: Path, number: int, allowed: int) -> None:
    held = SetAsideTasks(tmp_path / "failures.jsonl", tasks(number))
    for index in range(allowed):
        held.add(entry(f"t{index}"))
    if allowed:
        SetAsideTasks.load(held.file, tasks(number), resumes=True)
    match = rf"{allowed + 1} of {number} training tasks are set aside.*it says \[…\].*failures\.jsonl"
    with pytest.raises(RunError, match=match):
        held.add(entry(f"t{allowed}"))
    with pytest.raises(RunError, match=match):  # it is not forgotten
        SetAsideTasks.load(held.file, tasks(number), resumes=True)
