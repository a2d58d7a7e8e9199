"""Every panel is evaluated, and all of one evaluation is recorded together."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from hindsight.cluster import commands, train
from hindsight.cluster.evaluate import Evaluation, Stage
from hindsight.cluster.run import State
from hindsight.cluster.train import Trainer
from hindsight.configs.load import load_config
from hindsight.envs.tasks import Panel, TaskSpec

PANELS = tuple(
    Panel(name, tuple(TaskSpec(f"{name}-{n}", "toy", "k", "s") for n in range(2))) for name in ("near", "far")
)
CONFIG = load_config(None, ["evaluate.episodes=3", "evaluate.cold_episodes=1"])
Played = list[list[str]]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """The tasks of each call of `evaluate`."""
    calls: Played = []

    async def evaluate(*args: Any) -> tuple[Evaluation, list[Any], list[Any]]:
        *_, episodes, stage, step, finished = args
        calls.append([task.id for _, task in episodes])
        finished(len(episodes))
        return Evaluation(stage, step, len(episodes), 1 / len(calls), 0.0, 1.0, 2.0), [], []

    monkeypatch.setattr(train, "run_evaluation", evaluate)
    monkeypatch.setattr(commands, "run_evaluation", evaluate)
    return calls


def evaluated(stage: Stage) -> Any:
    """The run, after its trainer has evaluated."""
    trainer = Trainer.__new__(Trainer)
    trainer.run, trainer.actors = MagicMock(panels=PANELS, state=State(step=4, turns=9)), MagicMock()
    trainer.config = CONFIG
    asyncio.run(trainer.evaluate(stage))
    return trainer.run


def test_a_run_evaluates_on_every_panel_and_writes_one_row(played: Played) -> None:
    run = evaluated(Stage.AFTER_RL)
    assert played == [["near-0", "near-1", "near-0"], ["far-0", "far-1", "far-0"]]
    assert [(one.panel, one.digest) for one in run.state.evaluations] == [(p.name, p.digest) for p in PANELS]
    [call] = run.metrics.write.call_args_list
    step, kind, values, stage, panels = call.args
    assert (step, kind, stage) == (4, "eval", Stage.AFTER_RL)
    assert panels == {panel.name: panel.digest for panel in PANELS}
    assert (values["eval/success"], values["eval/far/success"]) == (1.0, 0.5)
    assert values["rollout/turns_total"] == 9.0
    assert [one.args[-1] for one in run.recorder.evaluation.call_args_list] == ["", "far"]


def test_before_the_warm_start_there_is_the_first_panel_alone(played: Played) -> None:
    run = evaluated(Stage.BEFORE_SFT)
    assert played == [["near-0"]] and [one.panel for one in run.state.evaluations] == ["near"]


def test_a_checkpoint_is_evaluated_on_every_panel(played: Played) -> None:
    done: list[int] = []
    told = asyncio.run(commands.play_panels(CONFIG, MagicMock(), MagicMock(), (), PANELS, done.append))
    assert [(one.panel, one.digest) for one, _, _ in told] == [(p.name, p.digest) for p in PANELS]
    assert done == [3, 6] and len(played) == 2
