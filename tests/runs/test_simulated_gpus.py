"""A plan on a Ray cluster whose GPUs exist for Ray only: actors land where it says, and sync weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("simulated_gpus.py")


def started(nodes: int) -> dict[str, Any]:
    """By role, the node and GPU of each actor; in a process of its own, which has a Ray of its own."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, SCRIPT, str(nodes)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["gap"] < 1e-3
    return found


@pytest.mark.parametrize("nodes", [1, 3])
def test_actors_land_where_the_plan_says(nodes: int) -> None:
    found = started(nodes)
    engines, learner, teacher = (found["where"][role] for role in ("engine", "learner", "teacher"))
    assert learner == teacher and all(gpus == [0] for _, gpus in (*engines, *learner))
    if nodes == 1:
        assert engines == learner and found["crowded"]
    else:
        assert len({node for node, _ in (*engines, *learner)}) == 3 and not found["crowded"]
        assert found["after"] not in {node for node, _ in (*engines, *learner)}  # the node that joined
        assert found["gap after"] < 1e-3
