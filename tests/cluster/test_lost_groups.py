"""Steps of a trainer whose groups fail: what it trains on, what does not move, when it stops."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hindsight.cluster.failures import FailureBudget, NothingTrained, RunError
from hindsight.cluster.heal import Restarts
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.recorder import Recorder
from hindsight.cluster.run import Run, State
from hindsight.cluster.set_aside import SetAside, SetAsideTasks
from hindsight.cluster.task_sampler import TaskSampler
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config, Rollout
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.learner.checkpoint import write_state
from hindsight.learner.samples import SampleGroup, to_samples
from hindsight.learner.weight_sync import SyncReport
from hindsight.rollout.types import Failure, FailureKind, Group, TokenSequence, Trajectory, Turn

TASKS = [TaskSpec(f"t{index}", "toy", "k", "train") for index in range(8)]
SIZE = 2  # episodes per group
Script = Callable[[int, str], FailureKind | None]  # (ordinal, task) -> why the group fails


def won(task: TaskSpec) -> Trajectory:
    result = StepResult(Observation("later"), "", 1.0, True, False, True)
    turn = Turn(0, 1, 2, None, Observation("now"), "", None, False, result)
    tokens = TokenSequence(np.zeros(2, np.int32), np.zeros(2), np.zeros(2, np.int32))
    return Trajectory(task, (tokens,), (turn,), True, 1.0, "terminated")


@asynccontextmanager
async def changing() -> AsyncIterator[None]:
    yield


class Toy:
    """A run whose groups succeed or fail by a script. What each step trains on is in `trained`."""

    def __init__(self, out: Path, script: Script, resumes: bool = False, **rollout: int) -> None:
        self.script, self.said = script, list[str]()
        self.played, self.trained, self.rows = list[str](), list[list[int]](), list[dict[str, float]]()
        self.begun: dict[int, int] = {}  # ordinal -> finished steps when it started
        config = Config(steps=6, rollout=Rollout(group_size=SIZE, **rollout))
        aside = SetAsideTasks.load(out / "failures.jsonl", TASKS, resumes)
        view = SimpleNamespace(say=self.said.append, step=lambda *_: None)
        self.run: Any = SimpleNamespace(
            config=config,
            out=out,
            actors=SimpleNamespace(restarts=Restarts(), critic=None),
            state=State(),
            sampler=TaskSampler(TASKS, 5, aside.ids),
            budget=FailureBudget(1.0, 10_000, aside.ids),
            set_aside=aside,
            view=view,
            watchdog=Watchdog(60),
            metrics=SimpleNamespace(write=lambda step, kind, values: self.rows.append(values)),
            recorder=Recorder(out, Pieces(lambda token: b"x")),
            now=lambda *_: None,
            changing=changing,
        )
        self.run.lose = lambda group: Run.lose(self.run, group)
        self.trainer = trainer = Trainer(self.run)
        trainer.method.finish, trainer.method.update = self.finish, self.update  # type: ignore[method-assign]
        publisher: Any = SimpleNamespace(sync=self.sync)
        trainer.publisher = publisher
        for name in ("roll_out", "produce", "checkpoint_and_evaluate"):
            setattr(trainer, name, getattr(self, name))

    async def roll_out(self, ordinal: int, task: TaskSpec) -> Group:
        await asyncio.sleep(0.001 * (ordinal * 7 % 3))  # they end in another order
        self.played.append(task.id)
        kind = self.script(ordinal, task.id)
        if kind is None:
            return Group(ordinal, task, (won(task),) * SIZE)
        return Group(ordinal, task, (), (Failure(kind, f"{task.id} broke", task.id),) * SIZE)

    async def produce(self, ordinal: int, task: TaskSpec, step: int) -> SampleGroup:
        self.begun[ordinal] = step
        group = to_samples(await self.roll_out(ordinal, task))
        group.rolled_out = time.monotonic()
        return group

    async def finish(self, batch: Iterable[SampleGroup], step: int) -> None:
        for sample in (sample for group in batch for sample in group.samples):
            sample.lags = self.run.state.version - sample.column("versions")

    async def update(self, batch: Iterable[SampleGroup], *_: Any) -> dict[str, float]:
        self.trained.append([group.group.ordinal for group in batch])
        return {}

    async def sync(self, step: int) -> SyncReport:
        self.run.state.version += 1
        return SyncReport(0.0, 0.0, "")

    async def checkpoint_and_evaluate(self) -> None:
        self.saved = json.dumps([self.run.sampler.state(), self.run.state.step])

    def steps(self, number: int) -> Toy:
        async def go() -> None:
            for _ in range(number):
                await self.trainer.step()
            for group in self.trainer.in_flight:
                group.cancel()

        asyncio.run(go())
        return self


def tasks_of(toy: Toy) -> list[str]:
    return [toy.run.sampler.task(ordinal).id for step in toy.trained for ordinal in step]


def bad(*tasks: str, kind: FailureKind = "env_error") -> Script:
    return lambda ordinal, task: kind if task in tasks else None


def test_a_step_trains_on_as_many_groups_as_it_asked_for(tmp_path: Path) -> None:
    """Two of eight tasks always fail; every step trains on three groups nevertheless."""
    toy = Toy(tmp_path, bad("t2", "t6"), num_groups=3).steps(6)
    assert [len(step) for step in toy.trained] == [3] * 6 and toy.run.state.step == 6
    assert (
        not {"t2", "t6"} & {*tasks_of(toy)} and len(toy.begun) == len(toy.played) - 2
    )  # each came again once
    first = sorted(ordinal for step in toy.trained for ordinal in step if ordinal < 8)
    assert [toy.run.sampler.task(ordinal).id in ("t2", "t6") for ordinal in range(8)].count(True) == 2
    assert len(first) == 6  # the first epoch has trained every other task, and once
    assert [toy.played.count(task) for task in ("t2", "t6")] == [2, 2]
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert sorted((line["task"], line["kind"], line["message"], line["groups"]) for line in lines) == [
        ("t2", "env_error", "t2 broke", 2),
        ("t6", "env_error", "t6 broke", 2),
    ]
    assert all(line["time"].endswith("+00:00") and 1 <= line["step"] < 6 for line in lines)
    assert len(toy.said) == 2 and all("set aside: task t" in said and "broke" in said for said in toy.said)
    last = toy.rows[-1]
    assert (last["failures/tasks_set_aside"], last["failures/env_error"]) == (2, 4 * SIZE)
    assert last["failures/total"] == 4 * SIZE and sum(row["failures/groups_lost"] for row in toy.rows) == 4


@pytest.mark.parametrize("kind", ["engine", "env_died", "lost"])
def test_a_step_without_data_is_no_step(tmp_path: Path, kind: FailureKind) -> None:
    """After one good step, an outage: nothing moves, and the run stops."""
    toy = Toy(tmp_path, lambda ordinal, task: kind if ordinal > 1 else None, num_groups=2).steps(1)
    before = (toy.saved, toy.run.state.step, toy.run.state.version, toy.run.state.turns, len(toy.rows))
    with pytest.raises((NothingTrained, RunError), match=rf"lost 6 groups.*{kind} 12.*on task t.: t. broke"):
        toy.steps(1)
    assert (toy.run.state.step, toy.run.state.version, toy.run.state.turns, len(toy.rows)) == before[1:]
    assert toy.saved == before[0] and toy.trained == [[0, 1]] and not (tmp_path / "failures.jsonl").exists()


def test_a_resumed_run_trains_on_the_same_groups(tmp_path: Path) -> None:
    def script(ordinal: int, task: str) -> FailureKind | None:
        return "env_error" if task in ("t2", "t6") else "engine" if ordinal in (3, 11) else None

    whole = Toy(tmp_path / "whole", script, num_groups=3)
    (tmp_path / "whole").mkdir()
    whole.steps(6)
    for steps in range(1, 6):
        out = tmp_path / f"{steps}"
        out.mkdir()
        broken = Toy(out, script, num_groups=3).steps(steps)
        state, step = json.loads(broken.saved)
        again = Toy(out, script, resumes=True, num_groups=3)
        again.run.sampler.restore(state)
        again.run.state.step = step
        assert broken.trained + again.steps(6 - steps).trained == whole.trained


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_replacements_keep_the_bound_on_staleness(tmp_path: Path, staleness: int) -> None:
    script: Script = lambda ordinal, task: "engine" if ordinal % 3 == 1 and ordinal < 12 else None  # noqa: E731
    toy = Toy(tmp_path, script, num_groups=2, max_staleness=staleness)
    toy.steps(6)
    assert [len(step) for step in toy.trained] == [2] * 6 and not toy.trainer.in_flight
    for step, batch in enumerate(toy.trained):
        assert all(step - toy.begun[ordinal] <= staleness for ordinal in batch)
    assert toy.run.sampler.outstanding == []


def test_a_prompt_that_is_too_long_sets_its_task_aside_at_once(tmp_path: Path) -> None:
    toy = Toy(tmp_path, bad("t3", kind="prompt"), num_groups=2).steps(6)
    assert toy.played.count("t3") == 1 and toy.run.set_aside.ids == {"t3"}


def test_the_log_prints_what_an_environment_said() -> None:
    """Not as markup of the console."""
    console = Console(file=io.StringIO(), width=200)
    View(console).say("KeyError: '[/red]' [bold]")
    assert "KeyError: '[/red]' [bold]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_settings_that_fit_no_task_stop_the_run_and_can_be_changed(tmp_path: Path) -> None:
    with pytest.raises(NothingTrained, match=r"no task of the first step fits .*: t\d broke"):
        Toy(tmp_path, lambda *_: "prompt", num_groups=2).steps(1)
    again = Toy(tmp_path, bad(), resumes=True, num_groups=2).steps(4)
    assert sorted(tasks_of(again)) == [task.id for task in TASKS]


def test_an_environment_that_fails_everywhere_is_not_blamed_on_its_tasks(tmp_path: Path) -> None:
    toy = Toy(tmp_path, bad("t0", "t1", "t2"), num_groups=3)
    with pytest.raises(RunError, match=r"3 of 8 training tasks are set aside.*failures\.jsonl"):
        toy.steps(6)
    with pytest.raises(RunError, match=r"3 of 8 training tasks"):
        Toy(tmp_path, bad(), resumes=True)


def fresh(out: Path) -> Run:
    """A run of the toy's tasks as `open_run` makes it, with nothing but what a checkpoint restores."""

    async def load(folder: Path) -> None:
        pass

    manifest, aside = Manifest(tuple(TASKS), ()), SetAsideTasks.load(out / "failures.jsonl", TASKS, True)
    parts: dict[str, Any] = dict.fromkeys(one.name for one in fields(Run))
    parts |= {"config": Config(), "out": out, "manifest": manifest, "set_aside": aside, "state": State()}
    parts["sampler"] = TaskSampler(TASKS, 5, aside.ids)
    parts["budget"] = FailureBudget(0.2, 4, aside.ids)
    parts["metrics"] = SimpleNamespace(truncate=lambda step, made: None)
    parts["recorder"] = Recorder(out, Pieces(lambda token: b"x"))
    learner = SimpleNamespace(load=load)
    parts["actors"] = SimpleNamespace(learner=learner, critic=None, scorers=lambda: {})
    return Run(**parts)


def test_a_checkpoint_brings_back_totals_but_no_grudge(tmp_path: Path) -> None:
    """A run that had many failures resumes, with what has been set aside; twice, as after a recovery."""
    before = fresh(tmp_path)
    before.budget.add(3, 9999, [Failure("engine", "gone", "t1")] * 64)
    before.state.step, before.state.turns = 3, 70
    before.sampler.admit()
    before.set_aside.add(SetAside("t4", "env_died", "killed", 2, 2))
    write_state(tmp_path, before._driver_state())
    after = fresh(tmp_path)
    for step in (3, 4):
        write_rows(tmp_path / f"trajectories/step-{step:06d}.jsonl", [])
    for _ in range(2):
        asyncio.run(after.restore(tmp_path))
        assert (after.state.step, after.state.turns, after.budget.counts) == (3, 70, {"engine": 64})
        assert after.sampler.state() == before.sampler.state()
        assert [file.stem for file in (tmp_path / "trajectories").iterdir()] == ["step-000003"]
    after.budget.add(4, 4, [Failure("engine", "gone", "t1")])
    assert after.sampler.aside == {"t4"} == fresh(tmp_path).set_aside.ids
