"""How long training waits for a checkpoint: for the disk, or for a copy in memory that is written meanwhile.

    python -m benchmarks.checkpoints [--gib 2.5] [--rounds 5] [--folder DISK]

One process writes safetensors of 1 GiB, as a rank does, through `learner.checkpoint`; both ways in turn.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from hindsight.learner.checkpoint import drafting, publish
from hindsight.learner.staging import StagingFolder, choose, free_memory

GIB = 2**30


def fill(folder: Path, tensors: dict[str, torch.Tensor], gib: float) -> None:
    """Write a rank's files."""
    (folder / "learner").mkdir()
    whole = tensors["weights"].numel() * 4 / GIB
    for number in range(max(1, round(gib / whole))):
        copy = {name: tensor.clone() for name, tensor in tensors.items()}
        save_file(copy, folder / f"learner/rank0-{number}.safetensors")


async def save(
    root: Path, step: int, tensors: dict[str, torch.Tensor], gib: float, beside: bool
) -> list[float]:
    """Write a checkpoint; seconds until training continues, and until the checkpoint is complete."""
    began = time.monotonic()
    stage = StagingFolder() if beside else None
    async with drafting(root, step, 0, stage.folder if stage else None) as folder:
        fill(folder, tensors, gib)
    drafted = time.monotonic()
    await publish(folder, root, step, keep=1)
    whole = time.monotonic()
    if stage:
        stage.remove()
    return [(drafted if beside else whole) - began, whole - began]


def main(
    gib: Annotated[float, typer.Option(help="of a checkpoint")] = 2.5,
    rounds: Annotated[int, typer.Option(help="of each way")] = 5,
    folder: Annotated[str, typer.Option(help="on the disk to measure; by default the temporary one")] = "",
) -> None:
    """Print medians and ranges."""
    console = Console()
    console.print(str(choose(int(gib * GIB), 1, *free_memory())), highlight=False)
    tensors = {"weights": torch.randn(int(min(gib, 1.0) * GIB / 4))}
    table = Table("written", "training waits, s", "complete after, s", title=f"{gib:g} GiB, {rounds} rounds")
    with tempfile.TemporaryDirectory(dir=folder or None) as root:
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        for number in range(2 * rounds):
            beside = bool(number % 2)
            found[beside].append(asyncio.run(save(Path(root), number, tensors, gib, beside)))
    for beside, rows in found.items():
        columns = [
            f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in zip(*rows, strict=True)
        ]
        table.add_row("while training continues" if beside else "while training waits", *columns)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
