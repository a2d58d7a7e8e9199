"""The command line: `hindsight train | sft | eval | plan | doctor | config | methods | new | envs`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hindsight.cluster import cli_envs
from hindsight.cluster.scaffold import KINDS, ScaffoldError, scaffold
from hindsight.configs.catalog import COLUMNS, catalog
from hindsight.configs.check import check, render
from hindsight.configs.environ import apply
from hindsight.configs.load import ConfigError, load, methods
from hindsight.configs.paths import lasting
from hindsight.configs.registry import unknown
from hindsight.configs.schema import Config

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_envs.app, name="envs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hindsight {version('hindsight-rl')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Train LLM agents over many turns with dense credit from hindsight."""


Recipe = Annotated[str, typer.Argument(help="name of a built-in recipe, or path of a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, such as steps=200 learner.lr=1e-5")
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: auto or an address; by default a local Ray is started"),
]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, address: Address = None) -> None:
    """Train an agent: optional supervised warm start, then RL, then held-out evaluation."""
    from hindsight.cluster.commands import train_run

    config = _read(recipe, overrides)
    _run(lambda: train_run(config, address))


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, address: Address = None) -> None:
    """Run only the supervised warm start. Continue with `train … resume=auto`."""
    from hindsight.cluster.commands import train_run

    config = _read(recipe, [*(overrides or []), "steps=0"])
    if config.sft.demos == 0:
        _fail("sft.demos = 0 leaves nothing to learn from: set sft.demos=150, for example")
    _run(lambda: train_run(config, address))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="a model folder, a checkpoint folder, or a run's folder")
    ],
    recipe: Recipe,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Evaluate a checkpoint on the held-out tasks."""
    from hindsight.cluster.commands import eval_run, find_model

    config = _read(recipe, overrides)
    model = find_model(lasting(checkpoint))
    if model is None:
        _fail(
            f"{checkpoint} holds no model: expected config.json in it, in model/ or in checkpoints/*/model/."
        )
    user_model = config.model.path  # the simulated user stays the model of the training run
    config = replace(config, model=replace(config.model, path=str(model)))
    _run(lambda: eval_run(config, user_model, address))


@app.command("plan")
def show_plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs per node; by default this machine's")] = None,
    gpu_gib: Annotated[float, typer.Option(help="memory of each GPU (GiB), with --gpus")] = 80.0,
    nodes: Annotated[int, typer.Option(help="machines", min=1)] = 1,
) -> None:
    """Print who would run where, with the memory that each needs. Starts nothing."""
    from hindsight.cluster.commands import expected_errors
    from hindsight.cluster.machines import this_machine
    from hindsight.cluster.planning import plan_notes, plan_run, plan_table

    config = _read(recipe, overrides)
    node = this_machine()
    if gpus is not None:
        node = replace(node, cpus=max(node.cpus, 8.0 * gpus), gpus=gpus, gpu_gib=gpu_gib)
    try:
        made = plan_run(config, [node] * nodes, config.model.path)
    except expected_errors() as error:
        _fail(str(error))
    Console().print(plan_table(made))
    for note in plan_notes(made):
        typer.echo(note)


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="recipe whose plan is checked")] = "alfworld",
    overrides: Overrides = None,
    run: Annotated[bool, typer.Option(help="also train nano for one step on the CPU")] = False,
    gpu: Annotated[bool, typer.Option(help="also train nano for one step on the GPUs")] = False,
) -> None:
    """Check what a run needs of this machine, and say what to do about what is missing."""
    from hindsight.cluster.doctor import examine, miniature

    config, console, wrong = _read(recipe, overrides), Console(), 0
    for finding in chain(examine(config), miniature(gpu) if run or gpu else ()):
        mark = "[red]✗[/red]" if finding.fix else "[green]✓[/green]"
        console.print(f"{mark} {escape(finding.what)}: {escape(finding.found)}", highlight=False)
        if finding.fix:
            wrong += 1
            console.print(f"  {escape(finding.fix)}", highlight=False, soft_wrap=True)
    if wrong:
        _fail(f"{wrong} to mend")


@app.command("config")
def show_config(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print the resolved configuration and every problem in it."""
    try:
        config = load(recipe, overrides or [])
    except ConfigError as error:
        _fail(str(error))
    typer.echo(render(config))
    problems = _problems(config)
    if problems:
        _fail("\n".join(problems))


@app.command("methods")
def show_methods(
    name: Annotated[str, typer.Argument(help="method to show in detail; by default all are listed")] = "",
) -> None:
    """List the available methods, or show what one is made of."""
    known = {method.name: method for method in catalog()}
    if name and name not in known:
        _fail(unknown("method", name, list(known)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=not name)
    if name:
        for column, cell in zip(COLUMNS, known[name].cells, strict=True):
            table.add_row(column, escape(cell))
    else:
        table.add_column("method=…", no_wrap=True)
        table.add_column("paper", no_wrap=True)
        table.add_column("what it is")
        for method in known.values():
            table.add_row(method.name, method.paper, escape(method.about))
    Console().print(table)
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
        _fail(str(error))
    Console().print(
        f"Wrote {path.name}. Use it with:\n  {command}", markup=False, highlight=False, soft_wrap=True
    )


def _read(recipe: str, overrides: list[str] | None) -> Config:
    try:
        config = load(recipe, overrides or [])
    except ConfigError as error:
        _fail(str(error))
    problems = _problems(config)
    if problems:
        _fail("\n".join(problems))
    return replace(config, out=str(lasting(config.out)))


def _problems(config: Config) -> list[str]:
    """Everything that is wrong with a configuration, what its environment refuses included."""
    from hindsight.envs.base import EnvError
    from hindsight.envs.registry import make_family

    try:
        make_family(config.env)
    except EnvError as error:
        return [*check(config), str(error)]
    return check(config)


def _run(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; an expected error becomes a message and exit status 1, a signal 130 or 143."""
    from hindsight.cluster.commands import expected_errors
    from hindsight.cluster.signals import Interrupted

    try:
        asyncio.run(start())
    except expected_errors() as error:
        _fail(str(error))
    except Interrupted as stop:
        again = "the same command with resume=auto continues from the last checkpoint"
        Console(stderr=True).print(f"{stop}; {again}", style="yellow", highlight=False, soft_wrap=True)
        raise typer.Exit(stop.status) from None


def _fail(message: str) -> Any:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code=1)


def main() -> None:
    """Entry point. Environment variables must be set before torch, vLLM or Ray are imported."""
    # Ray 2.60 clusters require a token; clients must enable it too.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    apply()
    app()
