"""A plan on a Ray cluster whose GPUs exist for Ray only: actors land where it says, and sync weights.

Each has a Ray of its own (own_ray), so it runs where no actors are shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # the first test waits for the script
SCRIPT = Path(__file__).with_name("simulated_gpus.py")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the script prints; in a process of its own, which has a Ray of its own."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


@pytest.mark.parametrize("nodes", [1, 3])
def test_actors_land_where_the_plan_says(found: dict[str, Any], nodes: int) -> None:
    made = found[str(nodes)]
    assert made["gap"] < 1e-3
    engines, learner, teacher = (made["where"][role] for role in ("engine", "learner", "teacher"))
    assert learner == teacher and all(gpus == [0] for _, gpus in (*engines, *learner))
    if nodes == 1:
        assert engines == learner and made["crowded"]
    else:
        assert len({node for node, _ in (*engines, *learner)}) == 3 and not made["crowded"]
        assert made["after"] not in {node for node, _ in (*engines, *learner)}  # the node that joined
        assert made["gap after"] < 1e-3


def test_two_ranks_on_two_nodes_train_with_the_cores_and_the_environment_of_each(
    found: dict[str, Any],
) -> None:
    made = found["ranks"]
    first, second = made["processes"]
    assert first["node"] != second["node"] and "/second/node" not in first["PATH"]
    assert "/second/node" in second["PATH"]
    for process, cores in ((first, len(os.sched_getaffinity(0))), (second, 1)):
        assert int(process["OMP_NUM_THREADS"]) == process["threads"] == cores
    one, again = made["stats"]
    assert one["samples"] == 4 and one["grad_norm"] > 0
    assert again["loss"] == one["loss"] and made["sums"][0] == made["sums"][1]  # from the same checkpoint
    seen, missing = made["blind"]
    assert seen == [] and missing and all(line.startswith("learner on ") for line in missing)
