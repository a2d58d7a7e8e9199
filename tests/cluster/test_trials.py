"""Trials of evaluated tasks: what is counted, what stands before the next one, what breaks a task."""

from __future__ import annotations

import asyncio
import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ObjectLostError
from rich.console import Console

import hindsight.cluster.trials
from hindsight.cluster.evaluate import Evaluation, run_evaluation, summarize, wilson
from hindsight.cluster.failures import RunError
from hindsight.cluster.trials import Attempts, example_tasks, solved_within
from hindsight.cluster.view import cost_lines, evaluation_table
from hindsight.configs.schema import Config, Env, Evaluate, Rollout
from hindsight.envs.base import (
    DataMissing,
    Demonstration,
    DemoStep,
    EnvError,
    NoDemonstration,
    Observation,
    StepResult,
)
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.feedback.preamble import EXAMPLE_TITLE
from hindsight.rollout.action_format import FORMS
from hindsight.rollout.types import Failure, TokenSequence, Trajectory, Tried, Turn

TASKS = [TaskSpec(f"{kind}{number}", "toy", kind, "eval") for kind in "ab" for number in range(2)]
ROOM = Observation("A room. Your task is to: rest.")


def trajectory(task, success, preamble=""):
    """One turn that read 5 tokens and wrote 2."""
    result = StepResult(Observation("Done."), "Done.", float(success), success, False, success)
    turn = Turn(0, 5, 7, None, ROOM, "rest", "rest", True, result)
    sequence = TokenSequence(np.zeros(7, np.int32), np.zeros(7, np.float32), np.zeros(7, np.int32))
    return Trajectory(task, (sequence,), (turn,), success, float(success), "terminated", preamble)


def demonstration(task, steps, success=True):
    result = StepResult(ROOM, "", 1.0, True, False, True)
    return Demonstration(task, ROOM, (DemoStep(ROOM, "rest", "rest", result),) * steps, success)


class ToyWorker:
    """Plays by a script, task -> what comes of its trials: True, False, None if it breaks, or "long"."""

    def __init__(self, script, demonstrations=()):
        self.script = {task: list(trials) for task, trials in script.items()}
        self.demonstrations = dict(demonstrations)
        self.seeds = []
        self.showing = self.most = 0  # demonstrations at once
        self.play = SimpleNamespace(remote=self._play)
        self.demonstrate = SimpleNamespace(remote=self._demonstrate)

    async def _play(self, ordinal, index, task, temperature, seed, preamble):
        self.seeds.append(seed)
        outcome = self.script[task.id].pop(0)
        if outcome is None:
            return Tried(Failure("env_died", "killed", task.id))
        if outcome == "long":
            return Tried(Failure("prompt", "raise model.max_length", task.id))
        return Tried(trajectory(task, outcome, preamble))

    async def _demonstrate(self, task, seed, noise):
        assert noise == 0.0
        shown = self.demonstrations.get(task.id, demonstration(task, 2))
        if isinstance(shown, Exception):
            raise shown
        self.showing += 1
        self.most = max(self.most, self.showing)
        try:
            await asyncio.sleep(60 if shown == "hangs" else 0)
        finally:
            self.showing -= 1
        return shown


def flat(result, plays, failures):
    """What `run_evaluation` returns, with the trials of all episodes in one list."""
    return result, [trajectory for play in plays for trajectory in play], failures


def run(
    monkeypatch, script, policy="reflexion", trials=3, demonstrations=(), lesson=None, timeout=600.0, slots=8
):
    """An evaluation with toys for workers and for who writes the lessons (3 tokens read, 1 written)."""
    asked = []

    async def ask(question):
        asked.append(question.write(12_000))
        if isinstance(lesson, Exception):
            raise lesson
        return Answer(lesson or f"Lesson {len(asked)}.", 3, 1)

    monkeypatch.setattr(hindsight.cluster.trials, "EngineAsk", lambda *args: ask)
    worker = ToyWorker(script, demonstrations)
    renderer = SimpleNamespace(form=FORMS["tags"])
    episodes = [(index, task) for index, task in enumerate(TASKS) if task.id in script]
    train = [replace(task, id=f"train-{task.id}", split="train") for task in TASKS]
    config = Config(
        evaluate=Evaluate(agent=policy, trials=trials),
        rollout=Rollout(timeout=timeout),
        env=Env(slots=slots, shards=1),
    )
    actors = SimpleNamespace(worker=worker, engines=[])
    done = []
    found = asyncio.run(run_evaluation(config, actors, renderer, train, episodes, "m", 0, done.append))
    assert done[-1] == len(episodes)
    return (*flat(*found), worker, asked)


def test_tasks_count_from_the_trial_that_solved_them():
    outcomes = [[True], [False, True], [False, False, False], [False, False, True], [True]]
    attempts = [Attempts(tuple(trajectory(TASKS[0], one) for one in trials)) for trials in outcomes]
    first, second, third = solved_within(attempts, 3)
    assert first == [True, False, False, False, True]
    assert second == [True, True, False, False, True]
    assert third == [True, True, False, True, True]
    assert solved_within([], 2) == [[], []]


def test_two_plays_of_a_task_that_agree_tell_as_much_as_one():
    won, lost = (Attempts((trajectory(TASKS[0], success),)) for success in (True, False))
    result = summarize("m", 0, ["a", "b", "a", "b"], [won, lost, won, lost], 1)
    assert (result.episodes, result.success) == (4, 0.5)
    assert (result.low, result.high) == wilson(0.5, 2) == result.intervals[0]
    values = result.metrics()
    assert (values["eval/pass_at_2"], values["eval/pass_hat_2"], values["eval/avg_at_2"]) == (0.5, 0.5, 0.5)
    assert (values["eval/low_best_at_2"], values["eval/high_best_at_2"]) == (0.0, 1.0)
    assert values["eval/tokens_per_play"] == result.tokens_written / 4
    assert values["eval/low_turns"] == values["eval/turns"] == result.turns
    far = replace(result, panel="games/far").metrics(first=False)
    assert far == {name.replace("eval/", "eval/games/far/"): value for name, value in values.items()}
    apart = summarize("m", 0, ["a", "b", "c", "d"], [won, lost, won, lost], 1)
    assert (apart.low, apart.high) == wilson(0.5, 4)


def test_success_is_reported_after_each_trial(monkeypatch):
    script = {"a0": [True], "a1": [False, True], "b0": [False, False, False], "b1": [False, False, True]}
    result, played, failures, worker, asked = run(monkeypatch, script)
    assert (result.episodes, result.success, result.solved, failures) == (4, 0.75, [1, 2, 3], [])
    assert (result.low, result.high) == wilson(0.75, 4)
    values = result.metrics()
    assert [values[f"eval/success_trial_{trial}"] for trial in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert (values["eval/low_trial_2"], values["eval/high_trial_2"]) == wilson(0.5, 4)
    assert len(played) == 9 and len(asked) == 5  # nothing is asked after a success or the last trial
    assert (result.tokens_read, result.tokens_written) == (9 * 5 + 5 * 3, 9 * 2 + 5 * 1)
    assert len(set(worker.seeds)) == 3
    assert Evaluation(**vars(result)) == result  # as a checkpoint brings it back


def test_the_next_trial_sees_the_lessons_of_those_before(monkeypatch):
    _, played, _, _, asked = run(monkeypatch, {"a0": [False] * 5}, trials=5)
    lessons = [[line for line in one.preamble.splitlines() if line.startswith("- Lesson")] for one in played]
    assert lessons[:3] == [[], ["- Lesson 1."], ["- Lesson 1.", "- Lesson 2."]]
    assert lessons[4] == ["- Lesson 2.", "- Lesson 3.", "- Lesson 4."]
    assert all(one.preamble.startswith(EXAMPLE_TITLE) for one in played)
    assert all(text.startswith("Task:\nA room.") and EXAMPLE_TITLE not in text for text in asked)


@pytest.mark.parametrize("broken", [[None], [False, None]])
def test_a_task_that_infrastructure_broke_is_left_out_of_every_rate(monkeypatch, broken):
    result, _, failures, _, _ = run(monkeypatch, {"a0": [True], "a1": broken}, trials=2)
    assert (result.episodes, result.success, result.solved) == (1, 1.0, [1, 1])
    assert [failure.kind for failure in failures] == ["env_died"]


def hung(script, timeout, slots=8, trials=1):
    """An evaluation where the outcome "hangs" never comes, and "lost" cannot be fetched."""
    worker = ToyWorker(script)
    started = []

    async def play(ordinal, index, task, *args):
        started.append(task.id)
        match script[task.id][0]:
            case "hangs":
                await asyncio.sleep(60)
            case "lost":
                raise ObjectLostError("00" * 28, None, "")
        return await worker._play(ordinal, index, task, *args)

    worker.play = SimpleNamespace(remote=play)
    config = Config(
        evaluate=Evaluate(trials=trials), rollout=Rollout(timeout=timeout), env=Env(slots=slots, shards=1)
    )
    actors = SimpleNamespace(worker=worker, engines=[])
    episodes = [(index, task) for index, task in enumerate(TASKS) if task.id in script]
    found = asyncio.run(run_evaluation(config, actors, None, TASKS, episodes, "m", 0, lambda done: None))
    return (*flat(*found), started)


def test_a_straggler_is_missing_and_does_not_hold_the_evaluation():
    script = {"a0": [True], "a1": ["hangs"], "b0": [False], "b1": ["lost"]}
    result, played, failures, _ = hung(script, timeout=0.3)
    assert (result.episodes, result.missing, result.success) == (2, 2, 0.5)
    assert (result.low, result.high) == wilson(0.5, 2)  # wider than of four
    assert result.metrics()["eval/missing"] == 2.0 and len(played) == 2
    assert [(failure.kind, failure.task) for failure in failures] == [("timeout", "a1"), ("lost", "b1")]
    assert "rollout.timeout = 0.3 s" in failures[0].message
    assert str(result).endswith(", 2 of 4 episodes missing")


def test_episodes_in_the_queue_do_not_each_wait_for_a_deadline():
    """One slot: its first episode ends, the second hangs, and nobody waits for what comes after it."""
    script = {"a0": [True], "a1": ["hangs"], "b0": ["hangs"], "b1": ["hangs"]}
    result, _, failures, started = hung(script, timeout=0.4, slots=1)
    assert (result.episodes, result.missing, len(failures)) == (1, 3, 3)
    assert "b1" not in started


def test_no_finished_episode_is_an_error_and_not_a_success_rate_of_zero():
    with pytest.raises(
        RunError, match=r"m: none of 2 evaluation episodes finished \(timeout 2\).*timeout = 0.2"
    ):
        hung({"a0": ["hangs"], "a1": ["hangs"]}, timeout=0.2)
    broken = Attempts((), failures=(Failure("env_died", "killed", "a"),), broken=True)
    with pytest.raises(RunError, match=r"none of 1 .*\(env_died 1\).*task a: killed"):
        summarize("m", 0, ["a"], [broken], 1)


def test_a_prompt_that_is_too_long_is_left_out(monkeypatch):
    result, _, failures, _, _ = run(monkeypatch, {"a0": [True], "a1": ["long"]}, policy="student")
    assert (result.episodes, result.success) == (1, 1.0) and [one.kind for one in failures] == ["prompt"]


def test_an_evaluation_without_an_episode_is_no_result(monkeypatch):
    match = r"none of 3 .*\(prompt 2, env_died 1\).*prompt, on task b0: raise model\.max_length"
    with pytest.raises(RunError, match=match):
        run(monkeypatch, {"a0": ["long"], "a1": [None], "b0": ["long"]}, policy="student")


def test_a_lesson_that_nobody_wrote_is_a_failure_of_infrastructure(monkeypatch):
    script = {"a0": [True], "a1": [False, True]}
    result, _, failures, _, _ = run(monkeypatch, script, lesson=JudgeError("gone"))
    assert (result.episodes, result.solved) == (1, [1, 1, 1])
    assert [(failure.kind, failure.message, failure.task) for failure in failures] == [
        ("judge", "gone", "a1")
    ]


@pytest.mark.parametrize("policy", ["student", "react"])
def test_the_other_policies_try_once(monkeypatch, policy):
    result, played, _, _, asked = run(monkeypatch, {"a0": [False], "a1": [True]}, policy=policy)
    assert (result.solved, len(played), asked) == ([1], 2, [])
    assert all(bool(one.preamble) == (policy == "react") for one in played)
    assert evaluation_table([result]).row_count == 1


def test_the_example_is_the_shortest_successful_demonstration_of_the_kind(monkeypatch):
    shown = {task.id: task for task in (replace(task, id=f"train-{task.id}") for task in TASKS)}
    lengths = {"train-b0": demonstration(shown["train-b0"], 1, success=False), "train-b1": None}
    lengths["train-b1"] = demonstration(shown["train-b1"], 3)
    _, [played], *_ = run(monkeypatch, {"b0": [True]}, policy="react", demonstrations=lengths)
    assert played.preamble.count("Observation: ") == 3
    lengths["train-b1"] = demonstration(shown["train-b1"], 3, success=False)
    with pytest.raises(RunError, match=r"train-b0, train-b1 succeeds: raise env.max_turns = 50"):
        run(monkeypatch, {"b0": [True]}, policy="react", demonstrations=lengths)
    assert [task.id for task in example_tasks(TASKS, "b")] == ["b0", "b1"]
    assert example_tasks(TASKS, "unknown") == TASKS


def test_a_demonstration_that_breaks_costs_the_example_only_if_all_do(monkeypatch):
    broken = {"train-a0": EnvError("no such file")}
    _, [played], failures, *_ = run(monkeypatch, {"a0": [True]}, policy="react", demonstrations=broken)
    assert played.preamble.startswith(EXAMPLE_TITLE)
    assert [(one.kind, one.task, one.message) for one in failures] == [
        ("demonstration", "train-a0", "no such file")
    ]
    broken["train-a1"] = EnvError("nor this")
    for policy in ("react", "reflexion"):
        with pytest.raises(RunError, match=r"all 2 demonstrations .*train-a1: nor this"):
            run(monkeypatch, {"a0": [True]}, policy=policy, demonstrations=broken)
    with pytest.raises(DataMissing):
        run(monkeypatch, {"a0": [True]}, demonstrations={"train-a0": DataMissing("set env.data")})


def test_a_slow_or_lost_demonstration_costs_itself_and_not_the_evaluation(monkeypatch):
    """One slot: the time that others wait for it is not theirs."""
    shown = {"train-a0": "hangs", "train-a1": ObjectLostError("00" * 28, None, "")}
    script = {"a0": [True], "b0": [True]}
    result, played, failures, worker, _ = run(
        monkeypatch,
        script,
        policy="react",
        demonstrations=shown | {"train-a1": demonstration(TASKS[1], 3)},
        timeout=0.4,
        slots=1,
    )
    assert result.episodes == 2 and all(one.preamble.startswith(EXAMPLE_TITLE) for one in played)
    assert [(one.kind, one.task) for one in failures] == [("demonstration", "train-a0")]
    assert "increase rollout.timeout" in failures[0].message and worker.most == 1
    late = r"all 2 demonstrations .*train-a0 took longer than 0\.4 s; .*increase rollout\.timeout.*=student"
    with pytest.raises(RunError, match=late):
        run(monkeypatch, {"a0": [True]}, policy="react", demonstrations=shown, timeout=0.4)


def test_without_reference_solutions_only_react_has_nothing_to_show(monkeypatch):
    none = {f"train-{task.id}": NoDemonstration("no reference solution") for task in TASKS}
    _, [played], *_ = run(monkeypatch, {"b0": [True]}, policy="reflexion", demonstrations=none)
    assert played.preamble == ""
    with pytest.raises(RunError, match=r"react shows a worked example, but .* set evaluate\.agent"):
        run(monkeypatch, {"b0": [True]}, policy="react", demonstrations=none)


def test_the_table_has_a_row_for_each_trial():
    bounds = [wilson(rate, 4) for rate in (0.25, 0.5, 0.75)]
    done = Evaluation("m", 0, 4, 0.75, *wilson(0.75, 4), 6.0, 9.0, 1200, 80, [1, 2, 3], bounds)
    old = Evaluation("after RL", 20, 4, 0.75, *wilson(0.75, 4), 6.0, 9.0)  # without trials
    late, far = (replace(old, stage="late", missing=3, panel=name) for name in ("near", "far"))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table([done, old, late, far]))
    text = console.export_text()
    rows = [re.split("  +", line.strip()) for line in text.splitlines() if "%" in line][1:]
    assert [row[:3] for row in rows] == [
        ["m, trial 1", "0", "25.0%"],
        ["m, trial 2", "0", "50.0%"],
        ["m, trial 3", "0", "75.0%"],
        ["after RL", "20", "75.0%"],
        ["late", "20", "75.0%"],
        ["late, far", "20", "75.0%"],
    ]
    assert rows[4][4] == "4 of 7"
    assert rows[3][3:] == ["30.1% to 95.4%", "4", "6.0", "9"]
    assert "1,200 prompt tokens, 80 generated" in text


def test_the_closing_lines_sum_over_steps():
    step = {"kind": "train", "teacher/spans": 10.0, "teacher/span_tokens": 40.0, "teacher/tokens": 3000.0}
    rows = [step | {"teacher/seconds_busy": 1.5}, step, {"kind": "train"}, {"kind": "eval"}]
    assert cost_lines(rows) == [
        "teacher: 20 (7 a step) spans of 80 (27 a step) tokens scored, 6,000 (2,000 a step) tokens read, "
        "busy for 1.5 (0.5 a step) s"
    ]
    assert cost_lines([{"kind": "train", "teacher/spans": 0.0}]) == []
