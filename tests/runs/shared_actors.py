"""One engine, one learner, one teacher for many short runs: starting them takes longer than the runs."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

import cluster.run
from cluster.run import Run, open_run
from cluster.start import Actors, has_critic, start_actors
from cluster.train import Trainer
from cluster.view import View
from configs.load import load
from configs.schema import Config
from envs.base import EnvFamily
from envs.pool import start_pool
from envs.registry import make_family
from rollout.worker import Worker

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Tokens of a demonstration in the nano words: they are ALFWorld's, other texts take two or three a word.
CONTEXTS = {"alfworld": 1024, "webshop": 4096, "taubench": 20480, "appworld": 8192, "bfcl": 16384}
WIDE = [  # budgets that hold the longest of them
    f"learner.micro_tokens={max(CONTEXTS.values())}",
    f"teacher.batch_tokens={max(CONTEXTS.values())}",
    "learner.checkpointing=false",
]


def longest() -> Config:
    """Settings of actors that any run of the tests can borrow: the longest context, every role."""
    tiny = ["model.path=nano", "env.train_tasks=6", "env.eval_tasks=2", "env.slots=2", "rollout.max_seqs=4"]
    context = f"model.context={max(CONTEXTS.values())}"
    return load(CONFIGS / "alfworld.yaml", [*tiny, *WIDE, context, "loss.kl=0.01", "credit.advantage=gae"])


@dataclass
class Lent(Actors):
    """Actors that do not end with the run that borrowed them."""

    async def stop(self) -> None:
        pass


class Shared:
    """Actors that runs borrow, one run at a time. Environments change where a run asks for others."""

    def __init__(self, config: Config, model: str) -> None:
        self.model = model
        self.actors = asyncio.run(start_actors(config, model, make_family(config.env)))
        self.env = config.env
        self.version = 0  # of weights: none comes twice

    def close(self) -> None:
        asyncio.run(self.actors.stop())

    def train(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whole run with these actors and environments of its own."""
        self._configure(config)
        monkeypatch.setattr(cluster.run, "start_actors", self._lend)

        async def run() -> None:
            async with open_run(config, View()) as opened:
                await self._run(opened)

        asyncio.run(run())

    async def _run(self, opened: Run) -> None:
        self.version += 100
        opened.state.version = self.version
        await opened.watchdog.guard(Trainer(opened).train())

    def _configure(self, config: Config) -> None:
        """Each actor keeps the settings that it was made with; give it those of this run."""

        def set_rank(rank: Any, settings: Config) -> None:
            rank.config = settings

        def set_teacher(teacher: Any, settings: Config) -> None:
            model = teacher._scorer.model
            teacher._share = settings.teacher.ema
            averages = settings.teacher.ema < 1 and not settings.averages_adapter
            held = model.named_parameters() if averages else ()
            teacher._average = {name: value.detach().float() for name, value in held} or None

        learner, calls = self.actors.learner, []
        assert learner is not None
        adapts = learner.config.learner.lora != config.learner.lora
        for trained in (learner, self.actors.critic):
            assert trained is not None
            trained.config = config
            calls += [rank.__ray_call__.remote(set_rank, config) for rank in trained.ranks]
        calls += [one.__ray_call__.remote(set_teacher, config) for one in self.actors.scorers().values()]
        ray.get(calls, timeout=120)
        if adapts:
            self._load_again(learner.ranks)

    def _load_again(self, ranks: list[Any]) -> None:
        """Let the ranks go on from the weights that they have, with or without an adapter on them."""

        def begin_with(rank: Any, folder: str) -> None:
            rank.model = folder

        with tempfile.TemporaryDirectory() as folder:
            ray.get([rank.save_model.remote(folder) for rank in ranks], timeout=120)
            ray.get([rank.__ray_call__.remote(begin_with, folder) for rank in ranks], timeout=120)
            ray.get([rank.start.remote("127.0.0.1", 0) for rank in ranks], timeout=120)  # they have met
            ray.get([rank.__ray_call__.remote(begin_with, self.model) for rank in ranks], timeout=120)

    async def _lend(self, config: Config, model: str, family: EnvFamily, *, teacher: bool, **_: Any) -> Lent:
        actors = self.actors
        if config.env != self.env:
            for handle in [actors.environments.pool, *actors.environments.shards]:
                ray.kill(handle)
            actors.environments, self.env = start_pool(config, family), config.env
            await actors.environments.ready(config.cluster.start_timeout)
        remake = (model, config, actors.engines, actors.environments.pool)
        ray.get([worker.__ray_call__.remote(Worker.__init__, *remake) for worker in actors.workers])
        own = {
            "critic": actors.critic if has_critic(config) else None,
            "teacher": actors.teacher if teacher else None,
            "reference": actors.reference if config.loss.kl > 0 else None,
        }
        return Lent(**vars(actors) | own)
