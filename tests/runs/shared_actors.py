"""One engine, one learner, one teacher for many short runs: starting them takes longer than the runs."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray

import hindsight.cluster.run
from hindsight.cluster.machines import cluster_nodes
from hindsight.cluster.plan import Plan
from hindsight.cluster.planning import plan_run
from hindsight.cluster.run import Run, open_run
from hindsight.cluster.start import Actors, start_actors, variables
from hindsight.cluster.train import Trainer
from hindsight.cluster.turns import Switch, Turns
from hindsight.cluster.view import View
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config, Lora
from hindsight.envs.base import EnvFamily
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.pool import start_pool
from hindsight.learner.signals import make_signal
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.worker import Worker
from hindsight.teacher.pool import ScorerPool
from hindsight.teacher.scorer import TeacherScorer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Tokens of a demonstration in the nano words: they are ALFWorld's, other texts take two or three a word.
CONTEXTS = {
    "alfworld": 1024,
    "webshop": 4096,
    "taubench": 20480,
    "appworld": 8192,
    "bfcl": 16384,
    "searchqa": 4096,
}
WIDE = [  # budgets that hold the longest of them
    f"learner.micro_batch_tokens={max(CONTEXTS.values())}",
    f"teacher.batch_tokens={max(CONTEXTS.values())}",
    "learner.gradient_checkpointing=false",
    "model.dtype=float32",  # the same on every machine
]


def longest() -> Config:
    """Settings of actors that any run of the tests can borrow: the longest context, every role."""
    tiny = [
        "model.path=nano",
        "env.train_tasks=6",
        "env.eval_tasks=2",
        "env.slots=2",
        "rollout.max_num_seqs=4",
    ]
    context = f"model.max_length={max(CONTEXTS.values())}"
    return load_config(
        CONFIGS / "alfworld.yaml", [*tiny, *WIDE, context, "loss.kl=0.01", "credit.advantage=gae"]
    )


def with_lora(config: Config, lora: Lora) -> Config:
    """The settings with that adapter."""
    return replace(config, learner=replace(config.learner, lora=lora))


def set_lora(engine: Any, lora: Lora) -> None:
    """Give an engine the settings of an adapter of no higher rank than it was made for."""
    engine.config = with_lora(engine.config, lora)


@dataclass
class Lent(Actors):
    """Actors that do not end with the run that borrowed them."""

    async def stop(self) -> None:
        pass


class Shared:
    """Actors that runs borrow, one run at a time. Environments change where a run asks for others."""

    def __init__(self, config: Config, model: str) -> None:
        self.model = model
        self.plan = plan_run(config, asyncio.run(cluster_nodes(config.cluster.start_timeout)), model)
        self.config = config = self.plan.config
        self.actors = asyncio.run(start_actors(self.plan, model, make_family(config.env)))
        self.plain, self.adapted = self.actors.engines, list[Any]()
        self.folder = tempfile.TemporaryDirectory(prefix="hindsight-shared-")
        self.env = config.env
        self.version = 0  # of weights: none comes twice
        self.closed = False

    def close(self) -> None:
        """End the actors; a second time, do nothing."""
        if not self.closed:
            self.closed = True
            self.actors.engines = [*self.plain, *self.adapted]
            asyncio.run(self.actors.stop())
            self.folder.cleanup()

    def train(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        """A whole run with these actors and environments of its own."""
        monkeypatch.setattr(hindsight.cluster.run, "start_actors", self._lend)

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
            rank.signal, rank.credit = make_signal(settings.signal), settings.credit

        def set_teacher(teacher: Any, settings: Config) -> None:
            teacher._share = 1.0 - settings.teacher.ema_decay
            averages = settings.teacher.ema_decay > 0 and not settings.averages_adapter
            held = teacher._held.items() if averages else ()
            teacher._average = {name: value.detach().float() for name, value in held} or None

        learner, calls = self.actors.learner, []
        assert learner is not None
        before = learner.config.learner.lora
        for trained in (learner, self.actors.critic):
            assert trained is not None
            trained.config = config
            calls += [rank.__ray_call__.remote(set_rank, config) for rank in trained.ranks]
        ray.get(calls, timeout=300)
        if before != config.learner.lora:
            self._begin_again(learner.ranks, before, config.learner.lora)
        scorers = [one for pool in self.actors.scorers().values() for one in pool.replicas]
        ray.get([one.__ray_call__.remote(set_teacher, config) for one in scorers], timeout=300)

    def _begin_again(self, ranks: list[Any], before: Lora, lora: Lora) -> None:
        """Learner, teacher and engine with an adapter, on the weights of the first such time; or without.

        An engine serves whole weights or adapters, so there is one of each.
        """

        def begin_with(rank: Any, folder: str) -> None:
            rank.model = folder

        adapted, plain = Path(self.folder.name, "adapted"), Path(self.folder.name, "plain")
        if not before.rank:
            ray.get([rank.save_model.remote(str(plain)) for rank in ranks], timeout=300)
            if not adapted.exists():
                shutil.copytree(plain, adapted)
        folder, config = str(adapted if lora.rank else plain), with_lora(self.config, lora)
        ray.get([rank.__ray_call__.remote(begin_with, folder) for rank in ranks], timeout=300)
        ray.get([rank.start.remote("127.0.0.1", 0) for rank in ranks], timeout=300)  # they have met
        ray.get([rank.__ray_call__.remote(begin_with, self.model) for rank in ranks], timeout=300)
        for role, pool in self.actors.scorers().items():
            own = (TeacherScorer.__init__, folder, config, config.temperatures[role])
            ray.get([one.__ray_call__.remote(*own) for one in pool.replicas], timeout=300)
        if not lora.rank:
            self.actors.engines = self.plain
            return
        if not self.adapted:
            place = {"num_cpus": 0, **variables(engine_env(config), gpus=0), "max_concurrency": 64}
            self.adapted = [ray.remote(Engine).options(**place).remote(folder, config, 0)]
            ray.get(self.adapted[0].ready.remote(), timeout=300)
        ray.get([engine.__ray_call__.remote(set_lora, lora) for engine in self.adapted], timeout=300)
        self.actors.engines = self.adapted

    def _note(self, event: str) -> Switch:
        """Without a GPU nothing has to move."""

        async def move() -> None:
            self.switches.append(event)

        return move

    async def _lend(self, plan: Plan, model: str, family: EnvFamily, *_: Any) -> Lent:
        actors, config = self.actors, plan.config
        self._configure(config)
        if config.env != self.env:
            for handle in actors.environments.shards:
                ray.kill(handle)
            actors.environments, self.env = start_pool(config, family), config.env
            await actors.environments.ready(config.cluster.start_timeout)
        remake = (model, config, actors.engines, actors.environments.shards)
        ray.get(actors.worker.__ray_call__.remote(Worker.__init__, *remake))
        turns = Turns()  # and pools: they belong to one event loop
        self.switches = list[str]()
        for role in ("engine", "teacher", "reference", "learner") if plan.in_turn else ():
            await turns.add(role, self._note(f"{role} sleeps"), self._note(f"{role} wakes"))
        for trained in filter(None, (actors.learner, actors.critic)):
            trained.turn = lambda: turns.of("learner")
        pools = {
            role: ScorerPool(role, pool.replicas, config.teacher.timeout, turns.of)
            for role, pool in actors.scorers().items()
            if plan.of(role)
        }
        for pool in pools.values():
            await pool.ready(config.cluster.start_timeout)
        own = {"critic": actors.critic if plan.of("critic") else None, "turns": turns}
        own |= {role: pools.get(role) for role in ("teacher", "reference")}
        return Lent(**vars(actors) | own)
