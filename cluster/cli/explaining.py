"""The commands that explain: `hindsight plan | doctor | config | methods | new`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hindsight.cluster.cli.common import Overrides, Recipe, fail, problems_of, read_config
from hindsight.cluster.report.text import PlainConsole, visible
from hindsight.cluster.scaffold import KINDS, ScaffoldError, scaffold
from hindsight.configs.catalog import COLUMNS, catalog
from hindsight.configs.check import render
from hindsight.configs.load import ConfigError, load_config, methods
from hindsight.configs.registry import unknown

if TYPE_CHECKING:  # it imports Ray, which `hindsight --help` does without
    from hindsight.cluster.plan import Plan

app = typer.Typer()


@app.command("plan")
def show_plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per node; by default this machine's")] = None,
    gpu_gib: Annotated[float, typer.Option(help="memory of each GPU (GiB), with --gpus")] = 80.0,
    nodes: Annotated[int, typer.Option(help="machines", min=1)] = 1,
    budget: Annotated[bool, typer.Option("--budget", help="also print what the run would cost")] = False,
    rates: Annotated[Path | None, typer.Option(help="as --budget, with the figures of a YAML file")] = None,
    seeds: Annotated[int, typer.Option(help="runs of --budget, each with its seed", min=1)] = 3,
) -> None:
    """Print which actor would run where, and how much memory it needs. Starts nothing."""
    from hindsight.cluster.commands import expected_errors
    from hindsight.cluster.machines import this_machine
    from hindsight.cluster.planning import plan_notes, plan_run, plan_table

    config = read_config(recipe, overrides)
    node = this_machine()
    if gpus is not None:
        node = replace(node, cpus=max(node.cpus, 8.0 * gpus), gpus=gpus, gpu_gib=gpu_gib)
    try:
        made = plan_run(config, [node] * nodes, config.model.path)
    except expected_errors() as error:
        fail(str(error))
    PlainConsole().print(plan_table(made))
    for note in plan_notes(made):
        typer.echo(note)
    if budget or rates:
        _show_budget(made, rates, seeds, shlex.join(["hindsight", "train", recipe, *(overrides or [])]))


def _show_budget(made: Plan, rates: Path | None, seeds: int, train: str) -> None:
    """Print seconds by phase and GPU-hours, what they are computed from, and the command."""
    from hindsight.cluster.budget import budget
    from hindsight.cluster.budget_text import budget_tables, describe_origins, seeds_command
    from hindsight.cluster.planning import model_shape
    from hindsight.cluster.rates import RatesError, figures_for
    from hindsight.rollout.outline import outline

    if not made.gpus:
        fail("--budget counts GPU-hours, and this plan has no GPU: add --gpus 8, for example")
    try:
        figures = figures_for(made.config.env.name, rates)
    except RatesError as error:
        fail(str(error))
    shape = model_shape(outline(made.config.model.path), made.config.learner.lora)
    for table in budget_tables(budget(made, shape, figures), figures, seeds):
        PlainConsole().print(table)
    typer.echo(f"{describe_origins(figures)}\nTrain with:\n  {seeds_command(train, made.config, seeds)}")


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="recipe whose plan is checked")] = "alfworld",
    overrides: Overrides = None,
    run: Annotated[bool, typer.Option(help="also train nano for one step on the CPU")] = False,
    gpu: Annotated[bool, typer.Option(help="also train nano for one step on the GPUs")] = False,
) -> None:
    """Check this machine for what a run needs, and suggest fixes."""
    from hindsight.cluster.doctor import examine, miniature

    config, console, wrong = read_config(recipe, overrides), PlainConsole(), 0
    for finding in chain(examine(config), miniature(gpu) if run or gpu else ()):
        mark = ("✗", "red") if finding.fix else ("✓", "green")
        console.print(Text.assemble(mark, visible(f" {finding.what}: {finding.found}")))
        if finding.fix:
            wrong += 1
            console.print(f"  {finding.fix}", soft_wrap=True)
    if wrong:
        fail(f"{wrong} to mend")


@app.command("config")
def show_config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print the resolved configuration and every problem in it."""
    try:
        config = load_config(recipe, overrides or [])
    except ConfigError as error:
        fail(str(error))
    typer.echo(render(config))
    problems = problems_of(config)
    if problems:
        fail("\n".join(problems))


@app.command("methods")
def show_methods(
    name: Annotated[str, typer.Argument(help="method to show in detail; by default all are listed")] = "",
) -> None:
    """List the available methods, or show what one is made of."""
    known = {method.name: method for method in catalog()}
    if name and name not in known:
        fail(unknown("method", name, list(known)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=not name)
    if name:
        for column, cell in zip(COLUMNS, known[name].cells, strict=True):
            table.add_row(column, cell)
    else:
        table.add_column("method=…", no_wrap=True)
        table.add_column("paper", no_wrap=True)
        table.add_column("what it is")
        for method in known.values():
            table.add_row(method.name, method.paper, method.about)
    PlainConsole().print(table)
    if name:
        typer.echo(methods()[name].read_text(), nl=False)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help=f"one of {', '.join(KINDS)}")],
    name: Annotated[str, typer.Argument(help="name of the file to write, without its suffix")],
) -> None:
    """Write a file to start from: your own environment, feedback source, advantage, …"""
    try:
        path, command = scaffold(kind, name, Path.cwd())
    except ScaffoldError as error:
        fail(str(error))
    PlainConsole().print(f"Wrote {path.name}. Use it with:\n  {command}", soft_wrap=True)
