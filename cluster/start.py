"""From a plan to running actors: reserve its bundles, create the actors in them, wait until each is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hindsight.cluster.heal import RESTARTS, Restarts, Watched
from hindsight.cluster.plan import Place, Plan, Role
from hindsight.cluster.turns import Turns
from hindsight.configs.environ import CORE_SHARE, actor_environment, actor_name_variable
from hindsight.envs.base import EnvFamily
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.pool import PoolHandles, start_pool
from hindsight.envs.runtime.remote import await_remote, call
from hindsight.learner.critic import CriticGroup
from hindsight.learner.group import LearnerGroup, RankGroup
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.models import resolve
from hindsight.rollout.serve import Address, ModelServer, endpoint_env, new_address
from hindsight.rollout.starting import file_of, said
from hindsight.rollout.worker import Worker
from hindsight.teacher.pool import ScorerPool
from hindsight.teacher.scorer import TeacherScorer, teacher_env

STARTING = "cluster.start_timeout"
G = TypeVar("G", bound=RankGroup)
# (what starts, what it does, or a function that says what it does now): until it is ready
ShowStart = Callable[[str, str | Callable[[], str]], AbstractContextManager[None]]
USER_KEY = "HINDSIGHT_USER_KEY"  # environment variable with the key of the run's own endpoint


def unseen(what: str, does: str | Callable[[], str]) -> AbstractContextManager[None]:
    """Show nothing of a start."""
    return nullcontext()


@dataclass
class Actors:
    """Handles of all actors; those that are not needed are absent."""

    engines: list[Any]
    worker: Any  # hosts the episodes
    environments: PoolHandles
    learner: LearnerGroup | None
    critic: CriticGroup | None  # for credit.advantage = gae
    teacher: ScorerPool | None
    reference: ScorerPool | None  # the reference policy, if loss.kl > 0
    user: Any | None  # the endpoint of the simulated user, if the run serves one
    group: PlacementGroup
    turns: Turns = field(default_factory=Turns)  # of roles that do not fit on their GPU together
    restarts: Restarts = field(default_factory=Restarts)  # of actors whose process was lost

    async def stop(self) -> None:
        """End every actor and release the reservation."""
        for ranks in self.trained().values():
            ranks.stop()
        handles = [*self.engines, self.worker, *self.environments.shards]
        handles += [scorer for pool in self.scorers().values() for scorer in pool.replicas]
        for handle in [*handles, *filter(None, [self.user])]:
            ray.kill(handle)
        remove_placement_group(self.group)

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated size of a checkpoint's largest parts: learner and critic."""
        return sum(ranks.checkpoint_bytes for ranks in self.trained().values())

    def trained(self) -> dict[str, RankGroup]:
        """Those who are trained, by role."""
        both: dict[str, RankGroup | None] = {"learner": self.learner, "critic": self.critic}
        return {name: ranks for name, ranks in both.items() if ranks is not None}

    @property
    def stateless(self) -> list[Watched]:
        """Those whose new process lacks nothing, to be watched."""
        own = {"worker": self.worker, "user": self.user}
        return [Watched(role, actor, partial(asyncio.sleep, 0)) for role, actor in own.items() if actor]

    def scorers(self) -> dict[str, ScorerPool]:
        """Those who score with copies of the student's weights, by role."""
        both = {"teacher": self.teacher, "reference": self.reference}
        return {name: pool for name, pool in both.items() if pool is not None}


async def start_actors(
    plan: Plan, model: str, family: EnvFamily, starting: ShowStart = unseen, *, user_model: str = ""
) -> Actors:
    """Create all actors in one placement group and wait until each is ready.

    Args:
        model: folder of the student.
        starting: shows what starts, and what that does.
        user_model: of the simulated user, if that is to be served and the environment names none; by default
            the student's.

    Raises:
        RemoteError: an actor died or was not ready within `cluster.start_timeout`.
    """
    with starting("resources", f"waiting until Ray has what {len(plan.places)} actors need"):
        group = await reserve(plan)
    return await _Starting(plan, group, model, family, user_model or model, starting).all()


async def reserve(plan: Plan) -> PlacementGroup:
    """Reserve the plan's bundles, all or nothing.

    Raises:
        RemoteTimeout: other runs held them for longer than `cluster.start_timeout`.
    """
    group = placement_group(list(plan.bundles), strategy="PACK")
    waiting = f"reserving resources for {len(plan.places)} actors (does another run hold them?)"
    await await_remote(
        group.ready(), timeout=plan.config.cluster.start_timeout, setting=STARTING, what=waiting
    )
    return group


class _Starting:
    """The start of one run's actors."""

    def __init__(
        self, plan: Plan, group: PlacementGroup, model: str, family: EnvFamily, user: str, starting: ShowStart
    ) -> None:
        self.plan, self.group, self.model, self.family, self.user_model = plan, group, model, family, user
        self.starting = starting
        self.config = plan.config
        self.limit: dict[str, Any] = {"timeout": self.config.cluster.start_timeout, "setting": STARTING}
        self.turns, self.restarts = Turns(), Restarts()
        # A new process would meet the role that has the turn on its GPU.
        self.replaced = {"max_restarts": 0 if plan.in_turn else RESTARTS}
        self.pools: dict[str, ScorerPool] = {}
        self.engines: list[Any] = []
        self.user: Any | None = None

    async def all(self) -> Actors:
        """Start everything at once; where engines share their GPUs, one after another.

        An engine comes first then: it measures the memory that is free.
        """
        plan, config = self.plan, self.config
        learner = self.ranks("learner", LearnerGroup)
        critic = self.ranks("critic", CriticGroup)
        steps = [self.start_engines, self.start_environments]
        steps += [partial(self.start_scorers, role) for role in ("teacher", "reference") if plan.of(role)]
        trained = {"critic": critic, "learner": learner}
        steps.append(partial(self.start_ranks, {role: group for role, group in trained.items() if group}))
        if plan.crowded or plan.in_turn:
            for step in steps:
                await step()
        else:
            await asyncio.gather(*(step() for step in steps))
        shards = self.environments.shards
        worker = ray.remote(Worker).options(
            num_cpus=0,
            max_concurrency=65_536,  # a call per episode in flight
            **self.replaced,
            **variables(actor_environment(threads=1) | actor_name_variable("worker"), gpus=0),
        )
        return Actors(
            engines=self.engines,
            worker=worker.remote(self.model, config, *map(Held, (self.engines, shards, self.user))),
            environments=self.environments,
            learner=learner,
            critic=critic,
            teacher=self.pools.get("teacher"),
            reference=self.pools.get("reference"),
            user=self.user,
            group=self.group,
            turns=self.turns,
            restarts=self.restarts,
        )

    def options(self, role: Role, env: dict[str, str]) -> list[dict[str, Any]]:
        """Ray's options of each actor of a role, with these environment variables."""
        return [
            {
                "num_cpus": place.cpus,
                "num_gpus": place.gpus,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=place.bundle
                ),
                **variables(env | self.cores(place) | actor_name_variable(role, index), place.gpus),
            }
            for index, place in enumerate(self.plan.of(role))
        ]

    def cores(self, place: Place) -> dict[str, str]:
        """The share of its node's cores that an actor has, unless their number is a setting."""
        return {} if self.config.cluster.threads else {CORE_SHARE: f"{self.plan.cores(place):g}"}

    def ranks(self, role: Role, kind: type[G]) -> G | None:
        """The ranks of a role, not started yet, if the run has it."""
        places = self.options(role, {})
        return kind(self.config, self.model, places, lambda: self.turns.of("learner")) if places else None

    async def start_engines(self) -> None:
        """Start all engines."""
        own = self.options("engine", engine_env(self.config))
        actor = ray.remote(Engine)
        self.engines = [
            actor.options(max_concurrency=4096, **self.replaced, **place).remote(
                self.model, self.config, index
            )
            for index, place in enumerate(own)
        ]
        files = [file_of(self.config.out, index) for index in range(len(own))]
        with self.starting(counted("engine", len(own)), lambda: f"vLLM: {said(files, 'starting a process')}"):
            await self.ask_engines("ready", "starting an engine")
        if self.plan.in_turn:
            await self.turns.add(
                "engine",
                lambda: self.ask_engines("sleep", "putting an engine to sleep"),
                lambda: self.ask_engines("wake", "waking an engine"),
            )

    async def ask_engines(self, method: str, what: str) -> None:
        """Call a method of every engine."""
        await asyncio.gather(*(call(one, method, what=what, **self.limit) for one in self.engines))

    async def start_environments(self) -> None:
        """Start the shards and their pool; a simulated user that the run serves must answer first."""
        family, secrets = self.family, {}
        for place, options in zip(
            self.plan.of("user"), self.options("user", endpoint_env(self.config)), strict=True
        ):
            address = await find_address(options, **self.limit)
            self.user = self.start_user(place, options, address)
            with self.starting("simulated user", "vLLM: loading its model"):
                await call(self.user, "ready", what="starting the user's endpoint", **self.limit)
            env = self.config.env.with_endpoint(address.url, address.model, USER_KEY)
            family, secrets = make_family(env), {USER_KEY: address.key}
        self.environments = start_pool(self.config, family, secrets)
        with self.starting("environments", "starting a process for each slot"):
            await self.environments.ready(self.config.cluster.start_timeout)

    def start_user(self, place: Place, options: dict[str, Any], address: Address) -> Any:
        """Start the endpoint of the simulated user."""
        share = place.need.total / self.plan.gpu_gib if self.plan.gpus else 1.0
        rollout = replace(self.config.rollout, gpu_memory_utilization=round(share, 4), tensor_parallel=1)
        served = str(resolve(self.config.env.served_model or self.user_model))
        config = replace(self.config, rollout=rollout)
        return ray.remote(ModelServer).options(**self.replaced, **options).remote(served, config, address)

    async def start_scorers(self, role: Role) -> None:
        """Start the replicas of the teacher or the reference policy."""
        config, actor = self.config, ray.remote(TeacherScorer)
        share = 1.0 - config.teacher.ema_decay if role == "teacher" else 1.0
        replicas = [
            actor.options(**self.replaced, **place).remote(
                self.model, config, config.temperatures[role], share
            )
            for place in self.options(role, teacher_env(config))
        ]
        self.pools[role] = pool = ScorerPool(
            role, replicas, config.teacher.timeout, self.turns.of, self.restarts.note
        )
        with self.starting(counted(role, len(replicas)), "loading the model"):
            await pool.ready(config.cluster.start_timeout)
        if self.plan.in_turn:
            await self.turns.add(role, pool.sleep, pool.wake)

    async def start_ranks(self, groups: Mapping[str, RankGroup]) -> None:
        """Start the learner, and the critic, which has the same turn."""
        for role, group in groups.items():
            with self.starting(counted(role, len(group.places)), "DeepSpeed: loading the model"):
                await group.start()

        async def all_ranks(method: str) -> None:
            await asyncio.gather(*(group.move(method) for group in groups.values()))

        if self.plan.in_turn and groups:
            await self.turns.add("learner", lambda: all_ranks("to_host"), lambda: all_ranks("to_device"))


class Held:
    """Handles as an argument of an actor's constructor, which gets them as they are.

    Ray warns of handles there, since it does not count those that a restarted actor would need. Pickled apart
    from the other arguments they are not seen, and stay valid as long as this process, the driver, lives.
    """

    def __init__(self, handles: Any) -> None:
        self.pickled = ray.cloudpickle.dumps(handles)

    def __reduce__(self) -> tuple[Any, ...]:
        return ray.cloudpickle.loads, (self.pickled,)


async def find_address(options: dict[str, Any], **limit: Any) -> Address:
    """An address for an endpoint that an actor with these options serves, and its successor."""
    asked = ray.remote(new_address).options(**options | {"num_cpus": 0, "num_gpus": 0}).remote()
    address: Address = await await_remote(asked, what="finding an address for the user's endpoint", **limit)
    return address


def counted(role: str, actors: int) -> str:
    """A role, and its number of actors if there are several."""
    return f"{role} ({actors})" if actors > 1 else role


def variables(env: dict[str, str], gpus: float) -> dict[str, Any]:
    """Actor options that set environment variables.

    Ray hides a node's GPUs only from actors that were given some, so those without must be told.
    """
    hidden = {} if gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return {"runtime_env": {"env_vars": env | hidden}}
