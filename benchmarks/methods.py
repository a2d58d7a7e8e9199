"""Seconds per training step of several methods on the same recipe: whole runs, in turn.

    python -m benchmarks.methods configs/alfworld.yaml dense hint_sd_full hero --steps 2 --rounds 2 KEY=VALUE…
    python -m benchmarks.methods nano grpo serl serl:signal.decay_steps=1   # SERL before and after its decay

Each round trains with every method once, one after another, with the same seed and so on the same tasks. The
first step of a run is not counted: it compiles. A method may have settings of its own: `serl:KEY=VALUE`.
Ratios are of the times of two steps with the same number, so with the same tasks: each method ÷ the first one
named, and ÷ the same method without its settings where that was named too. "s feedback_and_teacher" is
what a step waited for after its rollouts, whoever writes feedback included; "s scoring" is the teacher's own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.isolation import spread
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.progress import track
from rich.table import Table

SECONDS = ("step", "rollout", "feedback_and_teacher", "learner", "weight_sync")
COUNTS = ("teacher/spans", "teacher/tokens", "feedback/tokens_written")


def train(recipe: str, method: str, steps: int, overrides: Iterable[str]) -> list[dict[str, Any]]:
    """The training rows of one run without a warm start, but the first.

    Args:
        method: a name, and after a colon settings of its own, separated by commas.
    """
    name, _, settings = method.partition(":")
    with tempfile.TemporaryDirectory(prefix="hindsight-bench-") as folder:
        own = [f"method={name}", f"out={folder}/run", f"steps={steps + 1}", "sft.demos=0"]
        own += [*overrides, *filter(None, settings.split(","))]
        command = [sys.executable, "-m", "hindsight", "train", recipe, "cluster.dashboard_port=0", *own]
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
    """Print seconds per phase, what the teacher read, and the ratios of the steps' time."""
    methods = [word for word in words if ":" in word or "=" not in word]
    overrides = [word for word in words if word not in methods]
    runs: dict[str, list[list[dict[str, Any]]]] = {method: [] for method in methods}
    for method in track(methods * rounds, description="training"):
        runs[method].append(train(recipe, method, steps, overrides))

    runs_of = f"{rounds} rounds of {steps} steps, median [least, most]"
    table = Table(title=f"{' '.join([recipe, *overrides])}\n{runs_of}")
    phases = [f"s {name}" for name in (*SECONDS, "scoring")]
    for heading in ("method", *phases, "spans", "read", "written"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for method, results in runs.items():
        rows = [row for result in results for row in result]
        table.add_row(
            method,
            *(spread([row[f"time/{name}"] for row in rows], ".1f") for name in SECONDS),
            spread([row["teacher/seconds_busy"] for row in rows], ".1f"),
            *(f"{statistics.mean(row.get(name, 0.0) for row in rows):,.0f}" for name in COUNTS),
        )
    Console(soft_wrap=True).print(table)

    pairs = [(own, methods[0]) for own in methods[1:]]
    plain = {own: own.partition(":")[0] for own in methods if ":" in own}
    pairs += [(own, base) for own, base in plain.items() if base in methods[1:]]
    for own, base in pairs:
        steps_of = [[row["time/step"] for rows in runs[name] for row in rows] for name in (own, base)]
        print(ratio_line(f"step of {own} ÷ {base}", [a / b for a, b in zip(*steps_of, strict=True)]))


if __name__ == "__main__":
    typer.run(main)
