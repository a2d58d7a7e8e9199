"""The command line: one file for each family of commands, which `hindsight --help` lists."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Annotated

import typer

from hindsight.cluster.cli import comparing, envs, explaining, looking, probing, replaying, training
from hindsight.configs.environ import apply

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for commands in (training, looking, comparing, probing, replaying, explaining):
    app.add_typer(commands.app)
app.add_typer(envs.app, name="envs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hindsight {version('hindsight-rl')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train LLM agents over many turns with dense credit from hindsight."""


def main() -> None:
    """Entry point. Environment variables must be set before torch, vLLM or Ray are imported."""
    # Ray 2.60 clusters require a token; clients must enable it too.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    apply()
    app()
