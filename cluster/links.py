"""Every pair of this machine's GPUs sums a tensor over NCCL: whether they reach each other, and how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path

MEGABYTES = 64  # of the tensor: enough for the full rate, and as large as the learner's buckets
LIMIT = 180.0  # seconds for all pairs; a pair that cannot reach each other waits
TIMES = 5  # sums after the first, which makes the connection


class LinkError(RuntimeError):
    """A pair did not sum its tensor; the message says which, and what it said."""


@dataclass(frozen=True)
class Link:
    """What one pair did."""

    pair: tuple[int, int]
    seconds: float  # of one sum, the median
    gb_per_s: float  # bytes of the tensor by that


def measure_links(count: int, backend: str, megabytes: float = MEGABYTES, limit: float = LIMIT) -> list[Link]:
    """Have all pairs of `count` processes, one for each device, sum a tensor, one pair after another.

    Args:
        backend: "nccl", or "gloo" on the CPU.

    Raises:
        LinkError: a process failed, a sum is wrong, or not all were done within `limit` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="hindsight-links-") as folder:
        logs = [Path(folder, f"{rank}.log") for rank in range(count)]
        words = [sys.executable, "-m", "hindsight.cluster.links", folder, str(count), backend, str(megabytes)]
        running: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with log.open("wb") as file:
                    running.append(subprocess.Popen([*words, str(rank)], stdout=file, stderr=file))
            _await(running, limit)
        finally:
            for process in running:
                process.kill()
                process.wait()
        texts = [log.read_text(errors="replace") for log in logs]
    found = [link for text in texts for link in _links(text)]
    missing = sorted(set(combinations(range(count), 2)) - {link.pair for link in found})
    if missing:
        ended = [rank for rank, process in enumerate(running) if process.returncode not in (0, -9)]
        said = texts[(ended or missing[0])[0]].strip().splitlines()[-1:] or ["nothing"]
        state = "failed" if ended else f"did not end within {limit:g} s"
        pair = "-".join(map(str, missing[0]))
        raise LinkError(f"{backend} between GPUs {pair} {state}; the last line of its log: {said[0][:300]}")
    return sorted(found, key=lambda link: link.pair)


def links_summary(links: Sequence[Link]) -> str:
    """One line: how many pairs, the range of their rates, and the slowest."""
    slowest, fastest = (choose(links, key=lambda link: link.gb_per_s) for choose in (min, max))
    many = f"{len(links)} pairs" if len(links) > 1 else "1 pair"
    return (
        f"{many}, {slowest.gb_per_s:.1f} to {fastest.gb_per_s:.1f} GB/s; "
        f"slowest {slowest.pair[0]}-{slowest.pair[1]} ({slowest.seconds * 1000:.1f} ms)"
    )


def _await(running: Sequence[subprocess.Popen[bytes]], limit: float) -> None:
    """Until all have ended, one has failed, or the time is over."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        states = [process.poll() for process in running]
        if any(states) or None not in states:
            return
        time.sleep(0.05)


def _links(text: str) -> Iterator[Link]:
    for line in text.splitlines():
        if line.startswith('{"pair"'):
            row = json.loads(line)
            yield Link(tuple(row["pair"]), row["seconds"], row["gb_per_s"])


def join(folder: str, count: int, backend: str, megabytes: float, rank: int) -> None:
    """Take part in the sums of this process's pairs; print a line for each pair in which it is first."""
    import torch
    from torch import distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder}/meeting",
        world_size=count,
        rank=rank,
        timeout=timedelta(seconds=LIMIT),
    )
    for pair in combinations(range(count), 2):
        group = distributed.new_group(list(pair))
        if rank in pair:
            tensor = torch.ones(max(1, int(megabytes * 2**20 / 4)), device=device)
            times = []
            for _ in range(TIMES + 1):
                began = time.perf_counter()
                distributed.all_reduce(tensor, group=group)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - began)
            if not bool((tensor == 2.0 ** (TIMES + 1)).all()):
                raise LinkError(f"the sum of {pair[0]} and {pair[1]} is wrong")
            if rank == pair[0]:
                seconds = sorted(times[1:])[TIMES // 2]
                rate = tensor.numel() * 4 / 1e9 / seconds
                print(json.dumps({"pair": pair, "seconds": seconds, "gb_per_s": rate}), flush=True)
        distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    join(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
