"""Seconds per training step of several methods on the same recipe: whole runs, in turn.

    python -m benchmarks.methods configs/alfworld.yaml dense hint_sd_full hero --steps 2 --rounds 2 KEY=VALUE…

Each round trains with every method once, one after another, with the same seed and so on the same tasks. The
first step of a run is not counted: it compiles. Ratios are to the first method named, within a round.
"s feedback_and_teacher" is what a step waited for after its rollouts, whoever writes feedback included;
"s scoring" is the teacher's own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.isolation import spread
from rich.console import Console
from rich.progress import track
from rich.table import Table

SECONDS = ("step", "rollout", "feedback_and_teacher", "learner", "weight_sync")
COUNTS = ("teacher/spans", "teacher/tokens", "feedback/tokens_written")


def train(recipe: str, method: str, steps: int, overrides: Iterable[str]) -> list[dict[str, Any]]:
    """The training rows of one run without a warm start, but the first."""
    with tempfile.TemporaryDirectory(prefix="hindsight-bench-") as folder:
        own = [f"method={method}", f"out={folder}/run", f"steps={steps + 1}", "sft.demos=0"]
        command = ["hindsight", "train", recipe, *own, "cluster.dashboard_port=0", *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{method} did not train:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        rows = map(json.loads, Path(folder, "run/metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["kind"] == "train"][1:]


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe of configs/")],
    words: Annotated[list[str], typer.Argument(help="methods, and settings as key=value")],
    steps: int = 2,
    rounds: int = 2,
) -> None:
    """Print seconds per phase, what the teacher read, and the ratio of the steps' time."""
    methods = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    runs: dict[str, list[list[dict[str, Any]]]] = {method: [] for method in methods}
    for method in track(methods * rounds, description="training"):
        runs[method].append(train(recipe, method, steps, overrides))

    runs_of = f"{rounds} rounds of {steps} steps, median [least, most]"
    table = Table(title=f"{' '.join([recipe, *overrides])}\n{runs_of}")
    phases = [f"s {name}" for name in (*SECONDS, "scoring")]
    for heading in ("method", *phases, "spans", "read", "written", "times faster"):
        table.add_column(heading, justify="left" if heading == "method" else "right")

    def mean(rows: list[dict[str, Any]]) -> float:
        return statistics.mean(row["time/step"] for row in rows)

    for method, results in runs.items():
        rows = [row for result in results for row in result]
        ratios = [mean(base) / mean(own) for base, own in zip(runs[methods[0]], results, strict=True)]
        table.add_row(
            method,
            *(spread([row[f"time/{name}"] for row in rows], ".1f") for name in SECONDS),
            spread([row["teacher/seconds_busy"] for row in rows], ".1f"),
            *(f"{statistics.mean(row.get(name, 0.0) for row in rows):,.0f}" for name in COUNTS),
            spread(ratios, ".2f"),
        )
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    typer.run(main)
