"""The commands that look at runs, from their folders: `hindsight show | top`."""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from hindsight.cluster.cli.common import fail
from hindsight.cluster.report.text import PlainConsole
from hindsight.cluster.report.top import NotARun, Now, lines, table

app = typer.Typer()
Folder = Annotated[Path, typer.Argument(help="folder of a run (its `out`)", metavar="RUN")]


@app.command()
def top(
    run: Folder,
    once: Annotated[bool, typer.Option("--once", help="print it once and end")] = False,
) -> None:
    """Show a run as it goes on: phase, step, success, speed, failures. q or Ctrl-C ends."""
    found, console = Now(run), PlainConsole()
    try:
        found.refresh()
        if once or not console.is_terminal:
            console.print(table(lines(found.status, found.rows, found.about, time.time()), str(run)))
            return
        with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
            while True:
                found.refresh()
                shown = lines(found.status, found.rows, found.about, time.time())
                live.update(table(shown, f"{run}   (q ends)"), refresh=True)
                if pressed(1.0) in ("q", "\x04"):
                    return
    except NotARun as error:
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
