"""Two training steps on every environment: real engine, real learner, real teacher, on the nano model.

Engine, learner and teacher are started once and trained on one environment after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shared_actors import Shared

from configs.load import load
from configs.schema import Config
from envs.install import install
from envs.registry import FAMILIES

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# (tokens of a sequence, turns): as many as a demonstration takes
SIZES = {
    "alfworld": (1024, 12),
    "webshop": (4096, 6),
    "taubench": (20480, 10),
    "appworld": (8192, 4),
    "bfcl": (16384, 12),
}
LONGEST = max(SIZES, key=SIZES.__getitem__)
TINY = [
    "model.path=nano",  # its words are ALFWorld's: other texts take it two or three tokens a word
    "steps=2",
    "env.train_tasks=6",
    "env.eval_tasks=2",
    "env.slots=2",
    "rollout.groups=1",
    "rollout.group_size=2",
    "rollout.max_tokens=24",
    "rollout.max_seqs=4",
    "warm_start.demos=4",
    "warm_start.batch_rows=2",
    "warm_start.lr=1e-3",
    "feedback.max_tokens=128",
    "evaluate.episodes=2",
    "evaluate.cold_episodes=2",
    "checkpoint.every=9",
]


def settings(name: str, out: Path) -> Config:
    longest, _ = SIZES[LONGEST]
    context, turns = SIZES[name]
    budgets = [
        f"learner.micro_tokens={longest}",
        f"teacher.batch_tokens={longest}",
        "learner.checkpointing=false",
    ]
    return load(
        CONFIGS / f"{name}.yaml",
        [*TINY, *budgets, f"model.context={context}", f"env.max_turns={turns}", f"out={out}"],
    )


@pytest.fixture(scope="module")
def shared(ray_local: None, nano: Path) -> Iterator[Shared]:
    """Engine, learner and teacher for the longest context, with ALFWorld's environments."""
    longest, first = settings(LONGEST, Path("unused")), settings("alfworld", Path("unused"))
    actors = Shared(replace(longest, env=first.env), str(nano))
    yield actors
    actors.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_two_training_steps(
    name: str, shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(name)
    shared.train(settings(name, tmp_path / "run"), monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    warm = [row for row in rows if row["kind"] == "warm_start"]
    steps = [row for row in rows if row["kind"] == "train"]
    assert warm[-1]["loss"] < 12.0 and all(row["tokens"] > 0 for row in warm)
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["rollout/turns_per_episode"] >= 1 and row["failures/total"] == 0 for row in steps)
    episodes = (tmp_path / "run/trajectories/step-000002.jsonl").read_text().splitlines()
    assert len(episodes) == 2 and all(json.loads(episode)["turns"] for episode in episodes)
    assert (tmp_path / "run/checkpoints/step-00000002/model/config.json").is_file()
