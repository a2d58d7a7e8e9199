"""Actors on GPUs that only Ray believes in: where each lands, and one weight sync between them.

    python tests/runs/simulated_gpus.py NODES    (a Ray cluster of that many nodes with one GPU each)

Prints one JSON object: by role the node and the GPUs of each actor, and the log-prob gap of a weight sync.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from hindsight.cluster.plan import Node
from hindsight.cluster.planner import plan
from hindsight.cluster.planning import model_shape
from hindsight.cluster.start import start_actors
from hindsight.configs.environ import actor_environment
from hindsight.configs.load import load
from hindsight.configs.paths import SOURCE
from hindsight.envs.registry import make_family
from hindsight.learner.weight_sync import Canary, sync_weights
from hindsight.rollout.models import resolve
from hindsight.rollout.outline import outline

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SETTINGS = [
    *("model.max_length=256", "learner.micro_batch_tokens=256", "teacher.batch_tokens=256", "env.slots=1"),
    *("rollout.max_tokens=16", "feedback.max_tokens=32", "env.train_tasks=2", "env.eval_tasks=1"),
    *("weight_sync.transport=object_store", "teacher.replicas=1"),
]


def compute_on_cpu() -> None:
    """In every worker: an actor that was given a GPU takes the CPU instead of failing."""
    import hindsight.rollout.device as device

    device.find_device = lambda: "cpu"


def place(_: Any) -> tuple[str, list[int]]:
    return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()


async def main(nodes: int) -> dict[str, Any]:
    config = load(CONFIGS / "nano.yaml", SETTINGS)
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
    await actors.stop()
    return {"where": where, "gap": report.logprob_gap, "crowded": made.crowded}


if __name__ == "__main__":
    count = int(sys.argv[1])
    cluster = Cluster()
    for _ in range(count):
        cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=200 * 2**20, include_dashboard=False)
    path = os.pathsep.join([SOURCE, str(Path(__file__).parent)])
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        runtime_env={
            "env_vars": {**actor_environment(threads=1), "PYTHONPATH": path},
            "worker_process_setup_hook": compute_on_cpu,
        },
    )
    print(json.dumps(asyncio.run(main(count))))
    ray.shutdown()
    cluster.shutdown()
