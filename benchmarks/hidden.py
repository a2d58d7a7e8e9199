"""The share of the teacher's work that rollouts hide: scoring groups that are over, or trajectories.

    python -m benchmarks.hidden [RECIPE] [--rounds 3] [--steps 3] KEY=VALUE…

Each round trains once in either way, one after the other, on the same tasks; the first step of a run is not
counted, and there is no warm start unless `sft.demos` is set. The share is of the spans in the run's
timeline.jsonl. "at best" is the share if each trajectory were scored, in an average time, from the moment it
ended: what ends last cannot be hidden. Ratios of times are of the two runs of a round; rollouts are slower by
what the teacher takes from the engine's cores.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.isolation import spread
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.table import Table

from hindsight.cluster.report.run_folder import RunFolder
from hindsight.cluster.report.timeline import covered

WAYS = ("by group", "by trajectory")
TRAIN = """
import os, sys
os.environ.setdefault("RAY_AUTH_MODE", "token")
from hindsight.configs.environ import apply
apply()
from hindsight.cluster.cli import main
from hindsight.cluster.method import Method
if sys.argv.pop(1) == "by group":
    Method.needs = lambda method, step: "group"
main()
"""
DEFAULTS = (
    *("rollout.num_groups=4", "evaluate.episodes=1", "evaluate.cold_episodes=0", "checkpoint.every=100"),
    "sft.demos=0",
    "cluster.dashboard_port=0",
)
Spans = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Step:
    """What is known of a training step."""

    hidden: float  # share of the teacher's time within the rollouts
    best: float  # the same if every trajectory were scored from the moment it ended
    scoring: float  # seconds of the teacher
    rollout: float  # seconds of the rollouts
    after: float  # seconds that the step waited after its rollouts
    whole: float  # seconds of the step


def within(spans: Spans, bounds: Spans) -> float:
    """Seconds of the spans that lie within the bounds."""
    return covered(spans) + covered(bounds) - covered([*spans, *bounds])


def at_best(ends: Sequence[float], scoring: float, last: float) -> float:
    """Share of the scoring that is over at `last` if one teacher takes trajectories as they end."""
    each, free, hidden = scoring / len(ends), 0.0, 0.0
    for end in sorted(ends):
        start = max(free, end)
        free = start + each
        hidden += max(0.0, min(free, last) - start)
    return hidden / scoring


def steps_of(folder: Path) -> list[Step]:
    """The steps of a run, but the first, in which the teacher worked."""
    run, found = RunFolder(folder), []
    for row in run.metrics("train")[1:]:
        spans: dict[str, list[tuple[float, float]]] = {}
        for one in run.timeline(row["step"]):
            if "stage" in one:  # an episode of an evaluation
                continue
            spans.setdefault(one["role"], []).append((one["start"], one["end"]))
        if "teacher" in spans:
            scoring, rollouts = covered(spans["teacher"]), spans["rollout"]
            last = max(end for _, end in rollouts)
            found.append(
                Step(
                    within(spans["teacher"], rollouts) / scoring,
                    at_best([end for _, end in spans["engine"]], scoring, last),
                    scoring,
                    row["time/rollout"],
                    row["time/feedback_and_teacher"],
                    row["time/step"],
                )
            )
    return found


def train(way: str, recipe: str, steps: int, overrides: Sequence[str]) -> list[Step]:
    """The steps of one run."""
    with tempfile.TemporaryDirectory(prefix="hindsight-bench-") as folder:
        own = [f"out={folder}/run", f"steps={steps + 1}", *DEFAULTS, *overrides]
        command = [sys.executable, "-c", TRAIN, way, "train", recipe, *own]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{way} did not train:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found = steps_of(Path(folder, "run"))
    if not found:
        raise RuntimeError("the teacher scored nothing: choose a recipe and a method that it works for")
    return found


def main(
    words: Annotated[list[str] | None, typer.Argument(help="a recipe, and settings as key=value")] = None,
    rounds: Annotated[int, typer.Option(help="runs in either way")] = 3,
    steps: Annotated[int, typer.Option(help="of each run; one more comes first")] = 3,
) -> None:
    """Print shares and seconds of both ways."""
    given = words or []
    recipe = next((word for word in given if "=" not in word), "nano")
    overrides = [word for word in given if "=" in word]
    runs: dict[str, list[list[Step]]] = {way: [] for way in WAYS}
    for way in WAYS * rounds:
        runs[way].append(train(way, recipe, steps, overrides))
        seen = [f"{step.hidden:.0%} of {step.scoring:.2f} s" for step in runs[way][-1]]
        print(f"{way}: hidden {', '.join(seen)}", flush=True)

    title = f"{' '.join([recipe, *overrides])}\n{rounds} rounds of {steps} steps, median [least, most]"
    table = Table(title=title)
    names = ("hidden", "at best", "s scoring", "s rollout", "s after it", "s step")
    for heading in ("scored", *names):
        table.add_column(heading, justify="left" if heading == "scored" else "right")
    for way, results in runs.items():
        flat = [step for result in results for step in result]
        columns: list[tuple[list[float], str]] = [
            ([step.hidden for step in flat], ".0%"),
            ([step.best for step in flat], ".0%"),
            *(
                ([getattr(step, name) for step in flat], ".2f")
                for name in ("scoring", "rollout", "after", "whole")
            ),
        ]
        table.add_row(way, *(spread(values, form) for values, form in columns))
    Console(soft_wrap=True).print(table)
    for name, values in ratios(runs).items():
        print(ratio_line(name, values))


def ratios(runs: dict[str, list[list[Step]]]) -> dict[str, list[float]]:
    """By trajectory ÷ by group, a figure per round; and the shares that are hidden."""
    before, after = (runs[way] for way in WAYS)

    def mean(result: list[Step], name: str) -> float:
        return statistics.mean(getattr(step, name) for step in result)

    compared = {
        f"{name} by trajectory ÷ by group": [
            mean(new, name) / mean(old, name) for old, new in zip(before, after, strict=True)
        ]
        for name in ("rollout", "whole")
    }
    shares = {
        f"teacher time hidden, {way}": [
            sum(step.hidden * step.scoring for step in result) / sum(step.scoring for step in result)
            for result in runs[way]
        ]
        for way in WAYS
    }
    return compared | shares


if __name__ == "__main__":
    typer.run(main)
