"""From a configuration to running actors: join or start Ray, reserve resources, create the actors.

All problems that can be known are reported before the first actor starts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hindsight.cluster.failures import RunError
from hindsight.configs.environ import actor_environment
from hindsight.configs.paths import SOURCE
from hindsight.configs.registry import PLUGIN_FOLDERS
from hindsight.configs.schema import Config
from hindsight.envs.base import EnvFamily
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.pool import SHARD_CPUS, PoolHandles, start_pool
from hindsight.envs.runtime.remote import answer, call
from hindsight.learner.critic import CriticGroup
from hindsight.learner.group import LearnerGroup
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.models import resolve
from hindsight.rollout.serve import Address, ModelServer, endpoint_env
from hindsight.rollout.worker import Worker
from hindsight.teacher.scorer import TeacherScorer, teacher_env

STARTING = "cluster.start_timeout"
USER_KEY = "HINDSIGHT_USER_KEY"  # environment variable with the key of the run's own endpoint


@dataclass(frozen=True)
class Bundle:
    """One reserved place: `role` is engine, learner, critic, teacher, reference or user."""

    role: str
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """In Ray's form."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass
class Actors:
    """Handles of all actors; those that are not needed are absent."""

    engines: list[Any]
    worker: Any  # hosts the episodes
    environments: PoolHandles
    learner: LearnerGroup | None
    critic: CriticGroup | None  # for credit.advantage = gae
    teacher: Any | None
    reference: Any | None  # the reference policy, if loss.kl > 0
    user: Any | None  # the endpoint of the simulated user, if the run serves one
    teacher_context: int  # longest scoring request in tokens; 0 without a teacher
    group: PlacementGroup

    async def stop(self) -> None:
        """End every actor and release the reservation."""
        for trained in filter(None, (self.learner, self.critic)):
            trained.stop()
        handles = [*self.engines, self.worker, *self.environments.shards]
        for handle in [*handles, *self.scorers().values(), *filter(None, [self.user])]:
            ray.kill(handle)
        remove_placement_group(self.group)

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated size of a checkpoint's largest parts: learner and critic."""
        return sum(trained.checkpoint_bytes for trained in (self.learner, self.critic) if trained)

    def scorers(self) -> dict[str, Any]:
        """The actors that score with a copy of the student's weights, by role."""
        both = {"teacher": self.teacher, "reference": self.reference}
        return {name: actor for name, actor in both.items() if actor is not None}


def plan_bundles(config: Config, gpus: float, *, learner: bool, teacher: bool) -> list[Bundle]:
    """Return what to reserve. `cluster.share_gpu` splits one GPU; without GPUs, actors share cores."""
    others = ["critic"] * config.learner.ranks if learner and config.needs_critic else []
    others += ["teacher"] * teacher + ["reference"] * (learner and config.loss.kl > 0)
    if gpus == 0:
        engine, rank, other = (0.5, 0.0), (0.5, 0.0), (0.25, 0.0)
    elif config.cluster.share_gpu:
        # Rounded down to Ray's resolution of 1/10,000.
        engine, rank, other = (1.0, 0.4), (1.0, 0.4), (1.0, 2000 // max(1, len(others)) / 10_000)
    else:
        engine, rank, other = (1.0, float(config.rollout.tensor_parallel)), (1.0, 1.0), (1.0, 1.0)
    bundles = [Bundle("engine", *engine) for _ in range(config.rollout.engines)]
    bundles += [Bundle("learner", *rank) for _ in range(config.learner.ranks if learner else 0)]
    bundles += [Bundle(role, *other) for role in others]
    bundles += [Bundle("user", *engine)] if config.env.served_model is not None else []
    return bundles


def lacking(bundles: Sequence[Bundle], available: dict[str, float], shards: int = 0) -> str | None:
    """Return what the cluster lacks for these bundles and environment shards, or None."""
    needs = {kind: sum(bundle.resources.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")}
    needs["CPU"] += shards * SHARD_CPUS
    short = [
        f"{needs[kind]:g} {kind} needed, {available.get(kind, 0.0):g} in the cluster"
        for kind in needs
        if needs[kind] > available.get(kind, 0.0) + 1e-9
    ]
    if not short:
        return None
    return (
        f"too few resources for {len(bundles)} actors: {'; '.join(short)}. "
        "Lower rollout.engines, rollout.tensor_parallel or learner.ranks, set cluster.share_gpu or add nodes."
    )


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=5.0):
            return True
    except OSError:
        return False


def connect(config: Config) -> str | None:
    """Join Ray at `cluster.address` (or the cluster of a submitted job), or start a local Ray.

    Returns:
        the dashboard's address, if there is one.

    Raises:
        RunError: no such cluster, or the dashboard's port is taken.
    """
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    path = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {
        "runtime_env": {
            "env_vars": {"PYTHONPATH": path, "HINDSIGHT_PLUGINS": os.pathsep.join(PLUGIN_FOLDERS)}
        },
        "log_to_driver": False,  # the dashboard shows what actors print
        "logging_level": logging.WARNING,
    }
    if address:
        advice = (
            "Start one with `ray start --head` (with RAY_AUTH_MODE=token in both shells), "
            "or leave out --address to start a local Ray."
        )
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if port.isdigit() and not listens(host, int(port)):  # Ray itself would retry for minutes
            raise RunError(f"no Ray cluster answers at {address!r}. {advice}")
        try:
            context = ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"cannot join the Ray cluster at {address!r}: {error}. {advice}") from error
    else:
        if config.cluster.dashboard_port and listens("127.0.0.1", config.cluster.dashboard_port):
            raise RunError(
                f"port {config.cluster.dashboard_port} is in use. Set cluster.dashboard_port to a free one, "
                "or to 0 for no dashboard, or join the running Ray with --address auto."
            )
        context = ray.init(
            address="local",  # never join a cluster that happens to run on this machine
            num_cpus=max(2, os.cpu_count() or 2),
            include_dashboard=config.cluster.dashboard_port > 0,
            dashboard_port=config.cluster.dashboard_port or None,
            **common,
        )
    url = context.dashboard_url
    return f"http://{url}" if url else None


@dataclass(frozen=True)
class Places:
    """The reserved resources of a run."""

    group: PlacementGroup
    bundles: Sequence[Bundle]

    def __call__(self, role: str) -> list[dict[str, Any]]:
        """Return actor options, one per bundle of a role."""
        return [
            {
                "num_cpus": bundle.cpus,
                "num_gpus": bundle.gpus,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    self.group, placement_group_bundle_index=index
                ),
            }
            for index, bundle in enumerate(self.bundles)
            if bundle.role == role
        ]


async def reserve(config: Config, *, learner: bool, teacher: bool) -> Places:
    """Reserve resources for every actor that computes, all or nothing.

    Raises:
        RunError: the cluster cannot hold them, or not within `cluster.start_timeout`.
    """
    bundles = plan_bundles(config, ray.cluster_resources().get("GPU", 0.0), learner=learner, teacher=teacher)
    problem = lacking(bundles, ray.cluster_resources(), config.env.shards)
    if problem:
        raise RunError(problem)
    group = placement_group([bundle.resources for bundle in bundles], strategy="PACK")
    waiting = f"reserving resources for {len(bundles)} actors (does another run hold them?)"
    await answer(group.ready(), timeout=config.cluster.start_timeout, setting=STARTING, what=waiting)
    return Places(group, bundles)


def variables(env: dict[str, str]) -> dict[str, Any]:
    """Actor options that set environment variables."""
    return {"runtime_env": {"env_vars": env}}


async def start_actors(
    config: Config,
    model: str,
    family: EnvFamily,
    *,
    learner: bool = True,
    teacher: bool = True,
    user_model: str = "",
) -> Actors:
    """Create all actors in one placement group and wait until each is ready.

    Args:
        model: folder of the student. user_model: of the simulated user, if that is to be served and the
            environment names none; by default the student's.

    Raises:
        RunError: the cluster cannot hold them.
    """
    timeout = config.cluster.start_timeout
    places = await reserve(config, learner=learner, teacher=teacher)
    shared = {"max_concurrency": 4096, **variables(engine_env(config))}
    engines: list[Any] = [
        ray.remote(Engine).options(**shared, **place).remote(model, config, index)
        for index, place in enumerate(places("engine"))
    ]
    scorers: dict[str, Any] = {
        role: ray.remote(TeacherScorer)
        .options(**place, **variables(teacher_env(config)))
        .remote(model, config, temperature, 1.0 - config.teacher.ema_decay if role == "teacher" else 1.0)
        for role, temperature in config.temperatures.items()
        for place in places(role)
    }
    ranks = LearnerGroup(config, model, places("learner")) if learner else None
    critic = CriticGroup(config, model, places("critic")) if places("critic") else None
    user = start_user(config, user_model or model, places("user"))
    environments = await start_environments(config, family, user)
    worker = ray.remote(Worker).options(
        num_cpus=0, max_concurrency=4096, **variables(actor_environment(threads=1))
    )
    episodes = worker.remote(model, config, engines, environments.shards)
    limit: dict[str, Any] = {"timeout": timeout, "setting": STARTING}
    starting = [call(engine, "ready", what="starting an engine", **limit) for engine in engines]
    starting += [trained.start() for trained in (ranks, critic) if trained]
    await asyncio.gather(environments.ready(timeout), *starting)
    context = 0
    for role, scorer in scorers.items():
        ready = await call(scorer, "ready", what=f"starting the {role}", **limit)
        context = ready["context"]
    return Actors(
        engines,
        episodes,
        environments,
        ranks,
        critic,
        scorers.get("teacher"),
        scorers.get("reference"),
        user,
        context,
        places.group,
    )


def start_user(config: Config, model: str, places: Sequence[dict[str, Any]]) -> Any | None:
    """Start the endpoint of the simulated user, if the run serves one; `model` is its default."""
    if config.env.served_model is None:
        return None
    [place] = places
    options = {**place, **variables(endpoint_env(config))}
    served = str(resolve(config.env.served_model or model))
    return ray.remote(ModelServer).options(**options).remote(served, config)


async def start_environments(config: Config, family: EnvFamily, user: Any | None) -> PoolHandles:
    """Start the shards and their pool; a simulated user that the run serves must answer first."""
    if user is None:
        return start_pool(config, family)
    timeout, what = config.cluster.start_timeout, "starting the user's endpoint"
    address: Address = await call(user, "ready", timeout=timeout, setting=STARTING, what=what)
    env = config.env.with_endpoint(address.url, address.model, USER_KEY)
    return start_pool(config, make_family(env), {USER_KEY: address.key})
