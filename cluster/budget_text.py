"""A budget in words: seconds by phase, GPU-hours, what they are computed from, and the command."""

from __future__ import annotations

import os
from pathlib import Path

from rich import box
from rich.table import Table

from hindsight.cluster.budget import Budget
from hindsight.cluster.rates import Figures
from hindsight.configs.schema import Config

ASSUMED = "assumed"


def budget_tables(made: Budget, figures: Figures, seeds: int) -> list[Table]:
    """A step, the run, and what they are computed from."""
    return [steps_table(made), run_table(made, seeds), inputs_table(figures)]


def steps_table(made: Budget) -> Table:
    """Seconds of a step by phase."""
    table = _table("s per step", *(own.name for own in made.steps))
    for phase in dict.fromkeys(phase for own in made.steps for phase in own.phases):
        table.add_row(phase, *(rounded(own.phases[phase]) for own in made.steps))
    table.add_section()
    table.add_row("a step", *(rounded(own.seconds) for own in made.steps))
    table.add_row("waits for", *(own.bound for own in made.steps))
    table.add_row("engines compute", *(f"{own.engines:.0%}" for own in made.steps))
    table.add_row("ranks compute", *(f"{own.ranks:.0%}" for own in made.steps))
    return table


def run_table(made: Budget, seeds: int) -> Table:
    """Hours and GPU-hours of a run, and of several seeds."""
    table = _table("run", "hours", "share", f"GPU-hours on {made.gpus}")
    parts = [("warm start", made.warm_start)]
    parts += [(own.name, own.count * own.seconds) for own in made.steps]
    parts.append((f"{made.evaluations} evaluations", made.evaluation))
    for name, seconds in parts:
        spent, share = seconds / 3600, seconds / 3600 / made.hours if seconds else 0.0
        table.add_row(name, rounded(spent), f"{share:.0%}", rounded(made.gpus * spent))
    table.add_section()
    table.add_row("one seed", rounded(made.hours), "", rounded(made.gpu_hours))
    if seeds > 1:
        table.add_row(f"{seeds} seeds", rounded(seeds * made.hours), "", rounded(seeds * made.gpu_hours))
    return table


def inputs_table(figures: Figures) -> Table:
    """What it is computed from, each with its origin."""
    table = _table("computed from", "value", "what it is", "origin", right=1)
    for item in figures.all():
        origin = figures.source if item.key in figures.given else ASSUMED
        table.add_row(item.key, f"{item.value:,g}", item.help, origin)
    return table


def describe_origins(figures: Figures) -> str:
    """Which of it was measured, in a sentence."""
    whole, given = len(figures.all()), len(figures.given)
    if not given:
        return (
            "Computed, not measured: each of these figures is an assumption. State your own with --rates "
            "FILE (docs/cost.md)."
        )
    return f"Computed: {given} of {whole} figures are of the file ({figures.source}), the others assumptions."


def seeds_command(train: str, config: Config, seeds: int) -> str:
    """The shell command that trains with each seed in turn, into folders of their own.

    Args:
        train: the command with the recipe and its settings.
    """
    numbers = " ".join(str(config.seed + index) for index in range(seeds))
    out = "-".join(filter(None, (os.path.relpath(config.out), Path(config.method).stem, "$seed")))
    return f'for seed in {numbers}; do {train} seed=$seed out="{out}"; done'


def rounded(value: float) -> str:
    """A figure, with a decimal below ten."""
    return f"{value:,.1f}" if value < 9.95 else f"{value:,.0f}"


def _table(*columns: str, right: int = 9) -> Table:
    """A table whose first column and those after `right` are on the left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, no_wrap=index == 0, justify="right" if 0 < index <= right else "left")
    return table
