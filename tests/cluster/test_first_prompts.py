"""First prompts are measured once, during the warm start, and those too long are set aside."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hindsight.cluster.failures import RunError
from hindsight.cluster.first_prompts import (
    FILE,
    Measured,
    measure_first_prompts,
    prompts_summary,
    set_long_ones_aside,
)
from hindsight.cluster.set_aside import SetAsideTasks
from hindsight.cluster.task_sampler import TaskSampler
from hindsight.cluster.train import Trainer
from hindsight.configs.schema import Config, Env, Model, Prompt, Rollout
from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.tasks import Manifest, TaskSpec

TASKS = [TaskSpec(f"t{index}", "toy", "k", "train") for index in range(10)]
CONTEXT = 1024
Script = dict[str, int | Exception]


def opened(out: Path, script: Script, resumes: bool = False, **changed: Any) -> Any:
    """A run whose first prompts have these lengths, by default 100 tokens."""
    asked: Counter[str] = Counter()

    async def first_prompt(task: TaskSpec) -> int:
        asked[task.id] += 1
        found = script.get(task.id, 100)
        if isinstance(found, Exception):
            raise found
        return found

    aside = SetAsideTasks.load(out / "failures.jsonl", TASKS, resumes)
    config = Config(model=Model(max_length=CONTEXT), env=Env(slots=4), rollout=Rollout(max_tokens=64))
    said: list[str] = []
    return SimpleNamespace(
        config=replace(config, **changed),
        out=out,
        manifest=Manifest(tuple(TASKS), ()),
        actors=SimpleNamespace(worker=SimpleNamespace(first_prompt=SimpleNamespace(remote=first_prompt))),
        set_aside=aside,
        sampler=TaskSampler(TASKS, 5, aside.ids),
        state=SimpleNamespace(step=0, warm_started=False),
        view=SimpleNamespace(say=said.append, phase=lambda *_: None, reach=lambda *_: None),
        said=said,
        asked=asked,
    )


def handed_out(run: Any, count: int = 20) -> set[str]:
    return {run.sampler.task(run.sampler.admit()).id for _ in range(count)}


def test_prompts_that_leave_no_room_are_set_aside_and_remembered(tmp_path: Path) -> None:
    """A response needs 16 tokens."""
    script: Script = {"t3": CONTEXT - 16, "t4": CONTEXT - 15, "t7": 5000, "t8": EnvError("no such file")}
    run = opened(tmp_path, script)
    asyncio.run(set_long_ones_aside(run))
    assert run.set_aside.ids == {"t4", "t7"} and handed_out(run) == {
        f"t{n}" for n in (0, 1, 2, 3, 5, 6, 8, 9)
    }
    assert run.asked == Counter(task.id for task in TASKS)
    assert run.said == ["measured 9 first prompts in 0 s: 2 too long, set aside (1 failed: left to training)"]
    lines = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(one["task"], one["kind"], one["groups"]) for one in lines] == [
        ("t4", "prompt", 0),
        ("t7", "prompt", 0),
    ]
    assert "t7 has 5000 tokens but model.max_length is 1024: raise model.max_length" in str(
        run.set_aside.entries[1]
    )

    again = opened(tmp_path, script | {"t8": 100}, resumes=True)
    asyncio.run(set_long_ones_aside(again))
    assert again.asked == Counter(["t8"]) and again.set_aside.ids == {"t4", "t7"}
    assert again.said == ["measured 1 first prompts in 0 s: 2 too long, set aside"]
    last = opened(tmp_path, script, resumes=True)
    asyncio.run(set_long_ones_aside(last))
    assert last.asked == Counter() and last.set_aside.ids == {"t4", "t7"}
    assert last.said == ["first prompts as measured before: 2 too long, set aside"]
    assert (tmp_path / "failures.jsonl").read_text().count("\n") == 2


def test_a_run_that_resumes_measures_nothing(tmp_path: Path) -> None:
    """Nothing would hide the time that it takes."""
    run = opened(tmp_path, {"t4": 2000})
    run.state.warm_started = True
    asyncio.run(set_long_ones_aside(run))
    assert not run.asked and not run.said and not run.set_aside.ids


@pytest.mark.parametrize(("steps", "count"), [(0, 0), (4, 0), (6, 4), (9, 10)])
def test_only_tasks_that_will_be_trained_on_are_measured(tmp_path: Path, steps: int, count: int) -> None:
    """Five steps are done."""
    run = opened(tmp_path, {}, steps=steps, rollout=Rollout(num_groups=4))
    run.state.step = 5
    handed_out(run, 7)
    asyncio.run(set_long_ones_aside(run))
    assert run.asked.total() == len(run.asked) == count and len(run.said) == (count > 0)
    assert count == 10 or set(run.asked) == handed_out(run, count)


def test_what_is_too_long_depends_on_the_settings_of_the_run_that_resumes(tmp_path: Path) -> None:
    script: Script = {"t4": 2000}
    asyncio.run(set_long_ones_aside(opened(tmp_path, script)))
    longer = opened(tmp_path, script, resumes=True, model=Model(max_length=4096))
    asyncio.run(set_long_ones_aside(longer))
    assert not longer.set_aside.ids and not longer.asked and not longer.said
    other = opened(tmp_path, {}, resumes=True, prompt=Prompt(list_actions=False))
    asyncio.run(set_long_ones_aside(other))
    assert other.asked.total() == len(TASKS) and not other.set_aside.ids
    (tmp_path / FILE).write_text('{"of": ')
    broken = opened(tmp_path, {})
    asyncio.run(set_long_ones_aside(broken))
    assert broken.asked.total() == len(TASKS)


def test_settings_that_fit_few_tasks_end_the_run_while_it_warms_up(tmp_path: Path) -> None:
    run = opened(tmp_path, {f"t{index}": 5000 for index in range(3)})
    trainer = Trainer(run)

    async def prepare() -> None:
        await asyncio.sleep(60)

    trainer.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"3 of 10 training tasks are set aside.*raise model\.max_length"):
        asyncio.run(asyncio.wait_for(trainer.train_on(), 20))


def test_no_step_begins_before_the_prompts_are_measured(tmp_path: Path) -> None:
    run = opened(tmp_path, {"t3": 5000})
    run.config = replace(run.config, steps=1)
    trainer, aside = Trainer(run), []

    async def prepare() -> None:
        pass

    async def step() -> None:
        aside.append(set(run.sampler.aside))
        raise KeyboardInterrupt

    trainer.prepare, trainer.step = prepare, step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(trainer.train_on())
    assert aside == [{"t3"}]


def test_measuring_ends_in_time_and_takes_few_slots() -> None:
    running = most = 0

    async def ask(task: TaskSpec) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(60 if task.id in ("t5", "t6", "t7") else 0.001)
        finally:
            running -= 1
        return 100

    lengths = asyncio.run(measure_first_prompts(TASKS, ask, at_once=3, seconds=0.5))
    assert set(lengths.tokens) == {"t0", "t1", "t2", "t3", "t4"} | ({"t8"} & set(lengths.tokens))
    assert (most, running) == (3, 0)
    assert prompts_summary(Measured({"t0": 1}, failed=2), 10, 0, 60.0) == (
        "measured 1 first prompts in 60 s: all leave room for a response "
        "(2 failed and 7 were not reached: left to training)"
    )


def test_missing_data_end_the_run() -> None:
    async def ask(task: TaskSpec) -> int:
        raise DataMissing("set env.data")

    with pytest.raises(DataMissing):
        asyncio.run(measure_first_prompts(TASKS, ask, at_once=2))
