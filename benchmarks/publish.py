"""What a weight sync through the object store costs, in copies of the weights.

    python -m benchmarks.publish [--mib 512] [--tensors 300] [--rounds 5]

Each part is timed in turn within a round and divided by the time of one plain copy of the same bytes in that
round. The first sync, which gets its memory from the kernel, is not counted. The engine's own loading is not
part of it: vLLM copies each tensor into place once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
import typer
from rich.console import Console
from rich.table import Table

from hindsight.rollout.transfer import SharedCopy
from hindsight.rollout.weights import checksum, pack, unpack


class Sync:
    """One sync of the weights, part by part."""

    def __init__(self, named: list[tuple[str, torch.Tensor]]) -> None:
        self.named, self.layout, self.shared = named, pack(named)[1], SharedCopy()
        self.buffers: dict[Any, np.ndarray] = {}
        self.parts: dict[str, Callable[[], Any]] = {
            "learner: pack": self.pack,
            "learner: checksum": lambda: checksum(self.flat, self.layout),
            "learner: put into the object store": self.put,
            "engine: get": self.get,
            "engine: lend to vLLM's processes": self.lend,
            "engine: checksum": lambda: checksum(self.there, self.layout),
            "engine: views of the tensors": lambda: list(unpack(self.there, self.layout)),
        }

    def pack(self) -> None:
        self.flat = pack(self.named, self.layout, self.buffers)[0]

    def put(self) -> None:
        self.reference = self.got = None  # as in a run: the version before is gone
        self.reference = ray.put(self.flat)

    def get(self) -> None:
        self.got = ray.get(self.reference)

    def lend(self) -> None:
        self.there = np.memmap(self.shared.hold(self.got), dtype=np.uint8, mode="r")


def seconds(part: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    part()
    return time.perf_counter() - began


def main(mib: int = 512, tensors: int = 300, rounds: int = 5) -> None:
    """Print each part's cost: median [least, most] over the rounds."""
    size = mib * 2**20 // 4 // tensors
    named = [(f"layer.{index}", torch.rand(size)) for index in range(tensors)]
    spare, store = np.zeros_like(pack(named)[0]), 4 * mib * 2**20
    ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=store)
    copies: dict[str, list[float]] = {}
    sync = Sync(named)
    for turn in range(rounds + 1):
        spent = {name: seconds(part) for name, part in sync.parts.items()}
        copy = min(seconds(lambda held=sync.flat: np.copyto(spare, held)) for _ in range(2))
        if turn == 0:
            continue  # the first sync of a run gets new memory
        for name, own in {**spent, "all": sum(spent.values())}.items():
            copies.setdefault(name, []).append(own / copy)
    table = Table(title=f"{mib} MiB in {tensors} tensors, {rounds} rounds")
    table.add_column("part")
    table.add_column("copies of the bytes", justify="right")
    for name, times in copies.items():
        table.add_row(name, f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]")
    Console().print(table)
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
