"""Training steps on every environment: real engine, real learner, real teacher, on the nano model.

Engine, learner and teacher are those of `shared_actors`, trained on one environment after another.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from isolation import sandbox
from shared_actors import CONTEXTS, WIDE, Shared

from hindsight.configs.load import load_config
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.configs.schema import Config
from hindsight.envs.runtime.interpreters import install_interpreter

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TURNS = {"alfworld": 12, "webshop": 6, "taubench": 2, "appworld": 4, "bfcl": 2, "searchqa": 3}
# Their prompts have thousands of nano words, which each step reads anew; a demonstration would take 10 turns.
LONG = ("taubench", "bfcl")
TINY = [
    "model.path=nano",  # its words are ALFWorld's: other texts take it two or three tokens a word
    "steps=2",
    "env.train_tasks=6",
    "env.eval_tasks=2",
    "env.slots=2",
    "rollout.num_groups=1",
    "rollout.group_size=2",
    "rollout.max_tokens=24",
    "rollout.max_num_seqs=4",
    "sft.demos=2",
    "sft.batch_rows=2",
    "sft.lr=1e-3",
    "feedback.max_tokens=128",
    "evaluate.episodes=1",
    "evaluate.cold_episodes=0",
    "checkpoint.every=9",
]


def settings(name: str, out: Path, overrides: list[str]) -> Config:
    # Nothing is an action that a model says which was taught nothing.
    own = ["sft.demos=0", "steps=1", "rollout.max_tokens=8"] if name in LONG else []
    own += [f"model.max_length={CONTEXTS[name]}", f"env.max_turns={TURNS[name]}", f"out={out}", *overrides]
    return load_config(CONFIGS / f"{name}.yaml", [*TINY, *WIDE, *own])


@pytest.mark.parametrize("name", ENVIRONMENTS.builtin)
def test_training_steps(name: str, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_interpreter(name)
    isolated = [f"env.sandbox={sandbox()}"] if name == "appworld" else []
    config = settings(name, tmp_path / "run", isolated)
    shared.train(config, monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    warm = [row for row in rows if row["kind"] == "sft"]
    steps = [row for row in rows if row["kind"] == "train"]
    assert bool(warm) == (name not in LONG)
    assert all(row["tokens"] > 0 for row in warm) and all(row["loss"] < 12.0 for row in warm[-1:])
    assert [row["step"] for row in steps] == [1, 2][: config.steps]
    assert all(row["rollout/turns_per_episode"] >= 1 and row["failures/total"] == 0 for row in steps)
    episodes = (tmp_path / f"run/trajectories/step-00000{config.steps}.jsonl").read_text().splitlines()
    assert len(episodes) == 2 and all(json.loads(episode)["turns"] for episode in episodes)
    assert (tmp_path / f"run/checkpoints/step-0000000{config.steps}/model/config.json").is_file()


def test_tasks_that_always_fail_are_set_aside(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of six: every step has its two groups nevertheless, and the run ends well."""
    own = ["steps=3", "method=grpo", "sft.demos=0", "rollout.num_groups=2", f"out={tmp_path / 'run'}"]
    own += [f"env.name={Path(__file__).with_name('faulty_env.py')}", "env.max_turns=2", "rollout.retries=1"]
    shared.train(load_config(CONFIGS / "nano.yaml", [*TINY, *WIDE, *own]), monkeypatch)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    assert [row["rollout/episodes"] for row in steps] == [4, 4, 4]
    assert steps[-1]["failures/tasks_set_aside"] == 2 and steps[-1]["failures/env_error"] == 8
    aside = [json.loads(line) for line in (tmp_path / "run/failures.jsonl").read_text().splitlines()]
    assert sorted(one["task"] for one in aside) == ["broken-1", "broken-4"]
    assert all(one["kind"] == "env_error" and "no file for broken" in one["message"] for one in aside)
