"""The commands that look at runs, from their folders: `hindsight view | show | trace | top`."""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from hindsight.cluster.cli.common import fail
from hindsight.cluster.report.text import PlainConsole

app = typer.Typer()
Folder = Annotated[Path, typer.Argument(help="folder of a run (its `out`)", metavar="RUN")]
Runs = Annotated[list[Path] | None, typer.Argument(help="folders of runs (their `out`)", metavar="RUN")]


class By(StrEnum):
    """What colors a token."""

    weight = "weight"
    delta = "delta"
    advantage = "advantage"
    logprob = "logprob"


@app.command()
def view(
    runs: Runs = None,
    port: Annotated[
        int, typer.Option(help="port on this machine; 0 takes a free one", min=0, max=65535)
    ] = 7531,
    follow: Annotated[bool, typer.Option("--follow", help="keep updating the page during a run")] = False,
    export: Annotated[
        Path | None, typer.Option(help="write a folder of static files instead, which a browser can open")
    ] = None,
    stages: Annotated[
        str, typer.Option(help="with --export, steps and evaluations, as `show` names them: 2,after-RL")
    ] = "",
    last: Annotated[
        int, typer.Option(help="with --export, this many steps and the evaluations since", min=0)
    ] = 0,
    demo: Annotated[
        bool, typer.Option("--demo", help="show the small recorded runs included in the package")
    ] = False,
    own: Annotated[
        bool,
        typer.Option(
            "--own-drawings", help="draw a run's own environment with its code, which this executes"
        ),
    ] = False,
) -> None:
    """Show where in an episode the credit went and why, as a web page of one or more run folders."""
    from hindsight.cluster.report.viewing import ViewError, view_runs

    try:
        view_runs(runs or [], port, follow, export, demo, PlainConsole().print, own, stages, last)
    except ViewError as error:
        fail(str(error))


@app.command()
def show(
    run: Folder,
    what: Annotated[
        str,
        typer.Argument(
            help="3 lists the episodes of step 3, 3/2 prints its episode 2; evaluations: after-RL/2",
            metavar="[STEP[/EPISODE]]",
        ),
    ] = "",
    by: Annotated[By, typer.Option(help="the number that colors a token")] = By.weight,
    full: Annotated[bool, typer.Option("--full", help="do not shorten what the model saw")] = False,
) -> None:
    """List the steps and evaluations of a run, the episodes of one, or print an episode token by token."""
    from hindsight.cluster.report import show as pages
    from hindsight.cluster.report.run_folder import RunFolder, RunFolderError

    console = PlainConsole()
    try:
        folder = RunFolder(run)
        if not what:
            console.print(pages.stages(folder))
            return
        stage, number = pages.find_stage(folder, what)
        if number is None:
            console.print(pages.episodes(folder, stage))
            return
        color = console.is_terminal and not console.no_color
        for part in pages.show_episode(folder, stage, number, by.value, full, color):
            console.print(part, soft_wrap=not console.is_terminal)
    except RunFolderError as error:
        fail(str(error))


@app.command()
def trace(
    run: Folder,
    step: Annotated[
        int | None, typer.Option(help="a training step; 0: before the first; default: all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="file to write; by default trace.json in the run's folder")
    ] = None,
) -> None:
    """Write a trace that Perfetto or Chrome opens: who worked when, in a step or the whole run."""
    from hindsight.cluster.report.run_folder import RunFolder, RunFolderError
    from hindsight.cluster.report.trace import write_trace

    try:
        file, events = write_trace(RunFolder(run), step, out)
    except RunFolderError as error:
        fail(str(error))
    console = PlainConsole()
    console.print(
        f"wrote {file}: {events} events, {file.stat().st_size / 2**20:.1f} MiB. "
        "Open it in chrome://tracing, or at https://ui.perfetto.dev, which reads it in the browser",
        soft_wrap=True,
    )


@app.command()
def top(
    run: Folder,
    once: Annotated[bool, typer.Option("--once", help="print it once and end")] = False,
) -> None:
    """Watch a run in progress: phase, step, success, speed, failures. Quit with q or Ctrl-C."""
    from hindsight.cluster.report.run_folder import RunFolder, RunFolderError
    from hindsight.cluster.report.top import Now, status_table

    console = PlainConsole()
    try:
        found = Now(RunFolder(run))
        if once or not console.is_terminal:
            console.print(status_table(found.lines(time.time()), str(run)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
            while True:
                live.update(status_table(found.lines(time.time()), f"{run} (q ends)"), refresh=True)
                if pressed(1.0) in ("q", "\x04"):
                    return
    except RunFolderError as error:
        fail(str(error))
    except KeyboardInterrupt:
        return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Read single keys; yields a function that waits some seconds for one, and returns "" if none came."""
    if not sys.stdin.isatty():

        def asleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield asleep
        return
    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
