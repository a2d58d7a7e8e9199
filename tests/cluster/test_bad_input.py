"""What a user gets wrong, and what the command line answers before anything heavy starts."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private import ray_constants
from ray.exceptions import RayTaskError
from typer.testing import CliRunner

import hindsight.cluster.commands
from hindsight.cluster.cli import app
from hindsight.cluster.commands import evaluated_step, evaluation_folder, write_evaluation
from hindsight.cluster.evaluate import Evaluation
from hindsight.cluster.failures import RunError
from hindsight.cluster.machines import connect
from hindsight.cluster.report.compare import read_runs
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.configs.check import render
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.envs.runtime import remote
from hindsight.rollout.types import EngineError

RECIPE = str(Path(__file__).resolve().parents[2] / "configs/nano.yaml")


def answer(*arguments: str) -> str:
    """What a command that must fail prints, on one line."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    return " ".join(result.output.split())


@pytest.fixture
def listener() -> Iterator[int]:
    """A port of this machine that somebody else has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learner.lrr=1", "unknown setting 'learner.lrr'. Did you mean 'learner.lr'?"),
        ("goals=3", "unknown setting 'goals'. Did you mean 'env.goals'? It belongs to env.name=webshop"),
        ("learner.lr=abc", "learner.lr = 'abc': expected a number >= 0"),
        ("env.max_turns=0", "env.max_turns = 0: expected an integer >= 1"),
        ("prompt.preset=chat", "prompt.preset = 'chat': expected one of history, window"),
        ("teacher.ema=0.05", "unknown setting 'teacher.ema'. It is now teacher.ema_decay"),
        ("env.name=webshp", "env.name = 'webshp' is unknown. Did you mean 'webshop'?"),
        ("method=serll", "method = 'serll' is unknown. Did you mean 'serl'?"),
        (
            "signal.name=none signal.clip=0.1",
            "unknown setting 'signal.clip'. It belongs to signal.name=reweight",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(setting: str, said: str) -> None:
    for command in ("train", "config", "sft"):
        assert said in answer(command, RECIPE, *setting.split())


def test_a_missing_recipe_or_checkpoint_is_named(tmp_path: Path) -> None:
    assert "absent.yaml" in answer("train", str(tmp_path / "absent.yaml"))
    assert "holds no model" in answer("eval", str(tmp_path), RECIPE)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a run, moved since, with two checkpoints."""
    out = tmp_path / "moved run"
    for step in (2, 4):
        model = out / f"checkpoints/step-{step:08d}/model"
        model.mkdir(parents=True)
        (model / "config.json").touch()
    (out / "config.yaml").write_text(
        render(load_config("nano", ["out=/before", "evaluate.episodes=7", "seed=3"]))
    )
    return out


def test_an_evaluation_has_the_settings_of_its_run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    async def run(config: Config, user_model: str, address: str | None) -> None:
        seen.append(config)

    monkeypatch.setattr(hindsight.cluster.commands, "eval_run", run)
    older = trained / "checkpoints/step-00000002"
    for asked in (
        [trained],
        [trained, "seed=5"],
        [older],
        [older / "model"],
        [trained, "nano", "out=/other"],
    ):
        result = CliRunner().invoke(app, ["eval", *map(str, asked)])
        assert result.exit_code == 0, result.output
    assert [(one.evaluate.episodes, one.seed) for one in seen[:4]] == [(7, 3), (7, 5), (7, 3), (7, 3)]
    assert [str(evaluation_folder(one).relative_to(trained)) for one in seen[:4]] == [
        f"eval/step-0000000{step}/student" for step in (4, 4, 2, 2)
    ]
    assert str(evaluation_folder(seen[4])) == "/other/eval/step-00000004/student" and seen[4].seed == 0
    assert [evaluated_step(Path(one.model.path)) for one in seen] == [4, 4, 2, 2, 4]


def test_an_evaluation_without_settings_asks_for_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    for more in ([], ["seed=5"]):
        assert "name a recipe after it" in answer("eval", str(tmp_path), *more)


def test_no_evaluation_is_overwritten(trained: Path) -> None:
    (trained / "eval/step-00000004/student").mkdir(parents=True)
    said = answer("eval", str(trained))
    assert "eval/step-00000004/student already holds an evaluation. Rename or delete that folder" in said


def test_what_is_written_of_an_evaluation_can_be_compared(tmp_path: Path) -> None:
    folder, config = tmp_path / "eval/step-00000004/student", load_config("nano", ["tracker.names=[]"])
    config = replace(config, model=replace(config.model, path="/run/checkpoints/step-00000004/model"))
    result = Evaluation("student", 4, 2, 0.5, 0.1, 0.9, 3.0, panel="evaluation", digest="d1")
    other = replace(result, success=0.25, panel="games/far", digest="d2")
    write_evaluation(folder, config, "digest-1", [result, other], [[], []])
    assert json.loads((folder / "evaluation.json").read_text()) == {
        "checkpoint": "/run/checkpoints/step-00000004/model",
        "agent": "student",
        "tasks": "digest-1",
        "panels": {"evaluation": "d1", "games/far": "d2"},
    }
    assert (folder / "trajectories/eval-000004-student.jsonl").exists()
    stages = RunFolder(folder).steps()
    assert [(one.key, one.panel) for one in stages] == [
        ("eval-000004-student", ""),
        ("eval-000004-student--games.far", "games/far"),
    ]
    [row] = RunFolder(folder).metrics()
    assert (row["eval/success"], row["eval/games/far/success"]) == (0.5, 0.25)
    assert row["panels"] == {"evaluation": "d1", "games/far": "d2"}
    [found] = read_runs([folder])
    [point] = found.evaluations
    assert (point.step, point.success, point.low, point.panel) == (4, 0.5, 0.1, "evaluation (d1)")
    assert found.settings["model.path"] == "/run/checkpoints/step-00000004/model"


def test_what_an_actor_raised_is_said_without_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async def rollout() -> None:
        raise RayTaskError("rollout", "a long trace", EngineError("no room")).as_instanceof_cause()

    async def run(config: Config, address: str | None) -> None:
        await remote.await_remote(rollout(), timeout=60, setting="rollout.timeout", what="a rollout")

    monkeypatch.setattr(hindsight.cluster.commands, "train_run", run)
    assert answer("train", RECIPE) == "no room"


def test_an_evaluation_keeps_the_customer_of_the_training_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served by the run and unnamed, it is the model that training began with: not the checkpoint."""
    seen = []

    async def run(config: Config, user_model: str, address: str | None) -> None:
        seen.append((config, user_model))

    monkeypatch.setattr(hindsight.cluster.commands, "eval_run", run)
    (tmp_path / "config.json").touch()
    settings = ["env.name=taubench", "env.kinds=[retail]", "env.step_timeout=200", "env.reset_timeout=200"]
    for user in ("env.user.source=engine", "env.user.source=scripted"):
        asked = ["eval", str(tmp_path), RECIPE, *settings, user]
        assert CliRunner().invoke(app, asked).exit_code == 0
    assert [config.env.served_model for config, _ in seen] == ["", None]
    assert {(config.model.path, user_model) for config, user_model in seen} == {(str(tmp_path), "nano")}


def test_a_warm_start_without_demonstrations_is_refused() -> None:
    assert "sft.demos = 0" in answer("sft", RECIPE, "sft.demos=0")


def test_a_port_in_use_is_named_before_ray_starts(listener: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RunError, match=rf"port {listener} is in use.*cluster.dashboard_port"):
        connect(None, listener)


def test_a_cluster_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RunError, match=rf"no Ray cluster answers at '127.0.0.1:{port}'.*ray start --head"):
        connect(f"127.0.0.1:{port}", 0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            None,
            r"^Ray did not start: The node timed out\. .*try again.*`hindsight doctor`.*session_latest/logs",
        ),
        (
            "ray://10.0.0.9",
            r"^cannot join the Ray cluster at 'ray://10.0.0.9': The node timed out\. Start one",
        ),
    ],
)
@pytest.mark.parametrize("kind", [Exception, ConnectionError, RuntimeError, ValueError])
def test_what_ray_raises_at_its_start_is_a_message(
    monkeypatch: pytest.MonkeyPatch, address: str | None, message: str, kind: type[Exception]
) -> None:
    def init(**options: Any) -> None:
        raise kind("Log of the raylet:\n  a line\nThe node timed out.\n")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=message):
        connect(address, 0)
