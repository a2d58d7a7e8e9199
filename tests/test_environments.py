"""Two training steps on every environment: real engine, real learner, real teacher, on the nano model.

Engine, learner and teacher are started once and trained on one environment after another.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

import cluster.run
from cluster.run import open_run
from cluster.start import Actors, start_actors, variables
from cluster.train import Trainer
from cluster.view import View
from configs.environ import actor_environment
from configs.load import load
from configs.schema import Config
from envs.base import EnvFamily
from envs.install import install
from envs.pool import start_pool
from envs.registry import FAMILIES, make_family
from rollout.worker import Worker

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


@dataclass
class Lent(Actors):
    """Actors of a run of which only the environment's own end with it."""

    async def stop(self) -> None:
        for handle in [*self.workers, self.environments.pool, *self.environments.shards]:
            ray.kill(handle)


@pytest.fixture(scope="module")
def actors(ray_local: None, tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Any:
    """Engine, learner and teacher for the longest context, with ALFWorld's environments."""
    longest, first = settings(LONGEST, tmp_path_factory.mktemp("first")), settings("alfworld", Path("unused"))
    config = replace(longest, env=first.env)
    started = asyncio.run(start_actors(config, str(nano), make_family(config.env)))
    yield started
    asyncio.run(started.stop())


async def lend(actors: Actors, config: Config, model: str, family: EnvFamily, **_: Any) -> Lent:
    """The shared actors with environments and a worker of this run's own."""
    environments = start_pool(config, family)
    worker = ray.remote(Worker).options(
        num_cpus=0, max_concurrency=4096, **variables(actor_environment(threads=1))
    )
    workers = [worker.remote(model, config, actors.engines, environments.pool)]
    await environments.ready(config.cluster.start_timeout)
    return Lent(**vars(actors) | {"workers": workers, "environments": environments})


@pytest.mark.parametrize("name", FAMILIES)
def test_two_training_steps(
    name: str, actors: Actors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(name)
    monkeypatch.setattr(cluster.run, "start_actors", lambda *args, **kwargs: lend(actors, *args, **kwargs))
    config = settings(name, tmp_path / "run")

    async def run() -> None:
        async with open_run(config, View()) as opened:
            opened.state.version = 100 * list(FAMILIES).index(name)  # no version of weights comes twice
            await opened.watchdog.guard(Trainer(opened).train())

    asyncio.run(run())
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    warm = [row for row in rows if row["kind"] == "warm_start"]
    steps = [row for row in rows if row["kind"] == "train"]
    assert warm[-1]["loss"] < 12.0 and all(row["tokens"] > 0 for row in warm)
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["rollout/turns_per_episode"] >= 1 and row["failures/total"] == 0 for row in steps)
    episodes = (tmp_path / "run/trajectories/step-000002.jsonl").read_text().splitlines()
    assert len(episodes) == 2 and all(json.loads(episode)["turns"] for episode in episodes)
    assert (tmp_path / "run/checkpoints/step-00000002/model/config.json").is_file()
