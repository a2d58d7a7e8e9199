"""The command that trains on a recorded step again: `hindsight replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hindsight.cluster.cli.common import Overrides, run_to_end
from hindsight.cluster.report.text import PlainConsole

app = typer.Typer()


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run's output folder")],
    step: Annotated[int, typer.Argument(help="a training step of it, from 1", min=1)],
    overrides: Overrides = None,
    update: Annotated[
        bool, typer.Option(help="also update the policy; without, stop after the teacher")
    ] = True,
) -> None:
    """Recompute a recorded training step in one process: hints, teacher, credit, update.

    Other settings show what they change, such as another method on the same episodes. Nothing is written into
    the run's folder.
    """
    from hindsight.cluster import replay as replaying

    async def start() -> None:
        replayed = await replaying.replay_step(folder, step, overrides or [], update)
        for shown in replaying.replay_tables(replayed):
            PlainConsole().print(shown)

    run_to_end(start)
