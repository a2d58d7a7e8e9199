"""From the results of `benchmarks.gpu` to the file that `hindsight plan --rates` reads."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

BILLIONS = 7.6  # of the shape "7b"


def write_rates(folder: Path) -> Path | None:
    """Write rates.yaml from gpu.jsonl, with the rates of the 7B shape that were measured; None if none was.

    A rank of the whole model does not fit on one GPU, so `learn` follows from the FLOP/s of some of its
    layers: six per parameter and token. Engines were measured with a small model only, which says too little.
    """
    rows = [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]
    names = [row["gpu"] for row in rows if "gpu" in row]
    scored = [row["tokens_per_s"] for row in rows if row["part"] == "teacher7b" and "tokens_per_s" in row]
    updates = [row for row in rows if row["part"] == "learner7b" and "model_tflops" in row]
    trained = [
        row["model_tflops"] * 1e12 / 6 / (BILLIONS * 1e9) for row in updates if not row["checkpointing"]
    ]
    rates = {"score": scored, "learn": trained}
    measured = {name: round(max(values)) for name, values in rates.items() if values}
    if not measured or not names:
        return None
    file = folder / "rates.yaml"
    found = {"source": f"{names[-1]}, benchmarks.gpu", "gpu": {"billions": BILLIONS, **measured}}
    file.write_text(yaml.safe_dump(found, sort_keys=False))
    return file
