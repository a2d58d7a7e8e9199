"""Settings with what `hindsight plan` decides, for tests that create actors without a plan."""

from __future__ import annotations

from hindsight.cluster.memory import Shape
from hindsight.cluster.plan import Node
from hindsight.cluster.planner import plan
from hindsight.configs.schema import Config


def on_cpus(config: Config) -> Config:
    """`config` as planned for a machine without GPUs that holds any model."""
    empty = Shape(parameters=0, trained=0, layers=0, hidden=0, intermediate=0, kv=0, vocabulary=0)
    return plan(config, [Node(cpus=64, ram_gib=1e6)], empty).config
