"""What a weight sync costs on a CPU, in copies of the weights.

    python -m benchmarks.publish [--mib 512] [--tensors 300] [--rounds 5] [--model NAME]

Each part is divided by the time of a plain copy of the same bytes, timed right before and after it. In this
process that is processor time, which other programs on the machine change less; an engine's is wall time.
The first sync, which gets its memory from the kernel, is not counted. With `--model`, a real engine loads
that model's weights as well: its loading and the copy for other machines are apart, not in the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
import torch
import typer
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.table import Table

from hindsight.rollout.segment import Segment, attach
from hindsight.rollout.weights import WeightSet, checksum, meta_of, offsets, pack_tensors, unpack_tensors

Named = list[tuple[str, torch.Tensor]]
Costs = dict[str, list[float]]  # by part, in copies, of each round


class Sync:
    """One sync of the weights, part by part."""

    def __init__(self, named: Named) -> None:
        self.named = named
        self.layout = tuple(meta_of(name, tensor) for name, tensor in named)
        self.segment = Segment(offsets(self.layout)[-1])
        self.parts: dict[str, Callable[[], Any]] = {
            "learner: copy into shared memory, with its sums": self.write,
            "engine or teacher: map": lambda: attach(self.segment.handle),
            "engine or teacher: sums": lambda: checksum(attach(self.segment.handle), self.layout),
            "engine or teacher: views of the tensors": lambda: list(
                unpack_tensors(attach(self.segment.handle), self.layout)
            ),
        }

    def write(self) -> None:
        self.checksum = pack_tensors(self.named, self.layout, self.segment.data).checksum


class Clock:
    """Times calls against copies of the same bytes."""

    def __init__(self, flat: np.ndarray, now: Callable[[], float] = time.process_time) -> None:
        self.flat, self.spare, self.now = flat, np.ones_like(flat), now

    def copies(self, part: Callable[[], Any]) -> float:
        """Seconds of a call, divided by those of a copy."""
        before = self.seconds(self.copy)
        own = self.seconds(part)
        return own / statistics.mean((before, self.seconds(self.copy)))

    def seconds(self, part: Callable[[], Any]) -> float:
        """How long a call takes."""
        began = self.now()
        part()
        return self.now() - began

    def copy(self) -> None:
        np.copyto(self.spare, self.flat)


def measure(parts: dict[str, Callable[[], Any]], clock: Clock, rounds: int) -> Costs:
    """Each part in turn, `rounds` times after one that is not counted."""
    costs: Costs = {name: [] for name in parts}
    for turn in range(rounds + 1):
        spent = {name: clock.copies(part) for name, part in parts.items()}
        for name, own in spent.items() if turn else ():
            costs[name].append(own)
    return costs


@contextmanager
def engine_parts(model: str) -> Iterator[tuple[Sync, dict[str, Callable[[], Any]]]]:
    """What a real engine and Ray add to a sync of a model's weights."""
    from transformers import AutoModelForCausalLM

    from hindsight.configs.environ import ON_EACH_NODE
    from hindsight.configs.load import load_config
    from hindsight.rollout.engine import Engine, engine_env
    from hindsight.rollout.models import resolve

    overrides = ["model.max_length=512", "weight_sync.transport=object_store", "model.dtype=float32"]
    overrides.append("rollout.tensor_parallel=1")
    config, folder = load_config("nano", [*overrides, f"model.path={model}"]), str(resolve(model))
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sync, version = Sync([(name, one.detach()) for name, one in lm.named_parameters()]), iter(range(1, 10**6))
    sync.write()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": ON_EACH_NODE},
    )
    engine: Any = ray.remote(Engine).options(runtime_env={"env_vars": engine_env(config)})
    engine = engine.remote(folder, config, 0)
    ray.get(engine.ready.remote())
    kept: list[Any] = []

    def put() -> None:
        kept[:] = [ray.put(sync.segment.data)]

    def receive() -> None:
        weights = WeightSet(next(version), sync.layout, sync.checksum, segment=sync.segment.handle)
        ray.get(engine.load_weights.remote(weights))

    yield (
        sync,
        {"engine: all of its part, with vLLM's loading": receive, "learner: copy for other machines": put},
    )
    ray.shutdown()


def main(mib: int = 512, tensors: int = 300, rounds: int = 5, model: str = "") -> None:
    """Print each part's cost: median [least, most] over the rounds."""
    size = mib * 2**20 // 4 // tensors
    sync = Sync([(f"layer.{index}", torch.rand(size)) for index in range(tensors)])
    costs = measure(sync.parts, Clock(sync.segment.data), rounds)
    ratio = [sum(own) for own in zip(*costs.values(), strict=True)]
    show(f"{mib} MiB in {tensors} tensors, {rounds} rounds", {**costs, "all": ratio})
    if model:
        with engine_parts(model) as (own, parts):
            apart = measure(parts, Clock(own.segment.data, time.perf_counter), rounds)
        show(f"apart: {model}, {own.segment.data.size / 2**20:.0f} MiB, {rounds} rounds", apart)
    print(ratio_line("weight sync ÷ copy", ratio))


def show(title: str, costs: Costs) -> None:
    """Print a table."""
    table = Table(title=title)
    table.add_column("part")
    table.add_column("copies of the bytes", justify="right")
    for name, own in costs.items():
        table.add_row(name, spread(own))
    Console().print(table)


def spread(values: list[float]) -> str:
    """Median [least, most]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    typer.run(main)
