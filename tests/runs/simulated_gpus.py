"""Actors on GPUs that only Ray believes in: where each lands, and one weight sync between them.

Starts a Ray cluster of two nodes with one GPU each; the second has one core and an environment of its own.
Prints one JSON object with what was found of

    ranks   two learner ranks, one on each node: what their processes have of their nodes, and what a training
            step and a checkpoint come to
    "1"     a plan for one node: by role the node and the GPUs of each actor, and the gap of a weight sync
    "3"     the same for three nodes, of which one with an engine then leaves and another joins: where that
            engine is now, and its gap
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hindsight.cluster.heal import Watched, keep
from hindsight.cluster.plan import Node
from hindsight.cluster.planner import plan
from hindsight.cluster.planning import model_shape
from hindsight.cluster.saver import blind_writers
from hindsight.cluster.start import Actors, start_actors
from hindsight.configs.environ import actor_environment, apply_in_worker
from hindsight.configs.load import load_config
from hindsight.configs.paths import SOURCE
from hindsight.envs.registry import make_family
from hindsight.learner.group import LearnerGroup
from hindsight.learner.samples import TrainingSample
from hindsight.learner.weight_sync import Canary, SyncReport
from hindsight.learner.weight_sync_store import sync_weights
from hindsight.rollout.models import resolve
from hindsight.rollout.outline import outline

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETTINGS = [
    *("model.max_length=256", "learner.micro_batch_tokens=256", "teacher.batch_tokens=256", "env.slots=1"),
    *("rollout.max_tokens=16", "feedback.max_tokens=32", "env.train_tasks=2", "env.eval_tasks=1"),
    *("weight_sync.transport=object_store", "teacher.replicas=1"),
]

SECOND = "second"  # what only the second node has


def compute_on_cpu() -> None:
    """In every worker: an actor that was given a GPU takes the CPU instead of failing."""
    apply_in_worker()
    import hindsight.rollout.device as device

    device.find_device = lambda: "cpu"


def place(_: Any) -> tuple[str, list[int]]:
    return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()


def add_node(cluster: Cluster, **resources: float) -> None:
    memory = {"object_store_memory": 200 * 2**20}
    cluster.add_node(num_cpus=4, num_gpus=1, resources=resources, include_dashboard=False, **memory)


async def leave(
    cluster: Cluster, actors: Actors, sync: Callable[[Any], Awaitable[SyncReport]]
) -> dict[str, Any]:
    """Replace the node of an engine."""
    nodes = {node.node_id: node for node in cluster.worker_nodes}
    where = [await engine.__ray_call__.remote(place) for engine in actors.engines]
    [index, *_] = [index for index, (node, _) in enumerate(where) if node in nodes]
    engine, reports = actors.engines[index], list[SyncReport]()

    async def bring() -> None:
        if not await engine.serves.remote():  # it does, until its node leaves
            reports.append(await sync(engine))

    keeping = asyncio.create_task(keep([Watched("engine", engine, bring)], actors.restarts, 300.0))
    await asyncio.sleep(1.0)
    cluster.remove_node(nodes[where[index][0]])
    add_node(cluster)
    while not actors.restarts.counts:
        await asyncio.wait({keeping}, timeout=0.2)
        assert not keeping.done(), keeping.exception()
    keeping.cancel()
    node, _ = await engine.__ray_call__.remote(place)
    return {"before": where[index][0], "after": node, "gap after": reports[0].logprob_gap}


async def planned(nodes: int, cluster: Cluster) -> dict[str, Any]:
    """The actors of a plan for so many nodes."""
    config = load_config(CONFIGS / "nano.yaml", SETTINGS)
    model = str(resolve("nano"))
    there = [Node(cpus=4, ram_gib=64, gpus=1, gpu_gib=40)] * nodes
    made = plan(config, there, model_shape(outline(model), config.learner.lora))
    actors = await start_actors(made, model, make_family(config.env))
    learner = actors.learner
    assert learner is not None and actors.teacher is not None
    roles = {"engine": actors.engines, "learner": learner.ranks, "teacher": actors.teacher.replicas}
    where = {name: ray.get([one.__ray_call__.remote(place) for one in own]) for name, own in roles.items()}
    ids = np.arange(10, 40, dtype=np.int32)
    canary = Canary(ids, await learner.score(ids), tolerance=0.01)
    weights = await learner.export(1)
    await actors.teacher.load_weights(weights, True)
    report = await sync_weights(actors.engines, weights, canary, 300, 300)
    found = {"where": where, "gap": report.logprob_gap, "crowded": made.crowded}
    if nodes > 1:
        found |= await leave(
            cluster, actors, lambda engine: sync_weights([engine], weights, canary, 300, 300)
        )
    await actors.stop()
    return found


def process(_: Any) -> dict[str, Any]:
    """What an actor's process has of its node."""
    import torch

    own = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "PATH")}
    return own | {"node": ray.get_runtime_context().get_node_id(), "threads": torch.get_num_threads()}


def samples() -> list[TrainingSample]:
    """Four of different lengths."""
    draw = np.random.default_rng(0)
    made = []
    for length in (20, 30, 40, 50):
        ids = draw.integers(10, 200, length).astype(np.int32)
        places = np.arange(length - 8, length, dtype=np.int32)
        advantages, logprobs = np.linspace(-1, 1, 8, dtype=np.float32), np.full(8, -8.0, np.float32)
        made.append(TrainingSample(ids, places, advantages=advantages, rollout_logprobs=logprobs))
    return made


async def ranks() -> dict[str, Any]:
    """A training step of two ranks on two nodes, and their checkpoint."""
    config = load_config(CONFIGS / "nano.yaml", [*SETTINGS, "learner.ranks=2", "learner.zero_stage=2"])
    bundle = {"CPU": 0.5, "GPU": 1.0}
    group = placement_group([bundle, bundle | {SECOND: 1.0}], strategy="STRICT_SPREAD")
    places = [
        {
            "num_cpus": 0.5,
            "num_gpus": 1,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, index),
        }
        for index in range(2)
    ]
    learner = LearnerGroup(config, str(resolve("nano")), places)
    await learner.start()
    found = [await one.__ray_call__.remote(process) for one in learner.ranks]
    actors: Any = SimpleNamespace(trained=lambda: {"learner": learner}, scorers=dict)
    stats, sums = [], []
    with tempfile.TemporaryDirectory() as folder:
        await learner.save(folder)
        for _ in range(2):
            stats.append(await learner.update({"policy": samples()}, 0.0, 1e-3))
            sums.append((await learner.export(1)).checksum)
            await learner.load(folder)
        blind = [await blind_writers(actors, Path(folder, name), 60.0) for name in (".", "nothing")]
    learner.stop()
    remove_placement_group(group)
    return {"processes": found, "stats": stats, "sums": sums, "blind": blind}


async def main(cluster: Cluster) -> dict[str, Any]:
    found = {"ranks": await ranks(), "1": await planned(1, cluster)}
    add_node(cluster)
    return found | {"3": await planned(3, cluster)}


if __name__ == "__main__":
    cluster = Cluster()
    add_node(cluster)
    path, cores = os.environ["PATH"], os.sched_getaffinity(0)
    os.environ["PATH"] += f"{os.pathsep}/second/node"
    os.sched_setaffinity(0, {min(cores)})
    add_node(cluster, **{SECOND: 1.0})
    os.environ["PATH"] = path
    os.sched_setaffinity(0, cores)
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                **actor_environment(threads=1),
                "PYTHONPATH": os.pathsep.join([SOURCE, str(Path(__file__).parent)]),
            },
            "worker_process_setup_hook": compute_on_cpu,
        },
    )
    print(json.dumps(asyncio.run(main(cluster))))
    ray.shutdown()
    cluster.shutdown()
