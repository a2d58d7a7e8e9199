"""The commands that look at runs: `hindsight view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hindsight.cluster.cli.common import fail

app = typer.Typer()
Runs = Annotated[list[Path] | None, typer.Argument(help="folders of runs (their `out`)", metavar="RUN")]


@app.command()
def view(
    runs: Runs = None,
    port: Annotated[int, typer.Option(help="port on this machine; 0 takes a free one", min=0)] = 7531,
    follow: Annotated[bool, typer.Option("--follow", help="show what a run that is going on adds")] = False,
    export: Annotated[
        Path | None, typer.Option(help="write a folder of static files instead, which a browser can open")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="show small recorded runs that come along")] = False,
) -> None:
    """Show where in an episode the credit went and why, as a web page of one or more run folders."""
    from hindsight.cluster.report.viewing import ViewError, view_runs

    try:
        view_runs(runs or [], port, follow, export, demo, Console().print)
    except ViewError as error:
        fail(str(error))
