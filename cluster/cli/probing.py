"""The command that asks whether a model can read hints: `hindsight probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hindsight.cluster.cli.common import Overrides, fail, read_config, run_to_end

app = typer.Typer()


@app.command()
def probe(
    recipe: Annotated[str, typer.Argument(help="name of a built-in recipe, or path of a YAML file")] = "",
    overrides: Overrides = None,
    tasks: Annotated[int, typer.Option(help="maximum number of tasks", min=2)] = 64,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="use the recorded rollouts, the settings and the newest checkpoint of a run",
        ),
    ] = None,
    every_source: Annotated[
        bool,
        typer.Option(
            "--every-source", help="also probe each source alone that asks no judge, per step and per anchor"
        ),
    ] = False,
) -> None:
    """Ask whether a model can read hints: do they move it toward the better of two actions?

    It takes minutes, without Ray or engines. `model.path` may also be a checkpoint's or a run's folder.
    """
    from hindsight.cluster.probe import command

    given = [*([recipe] if "=" in recipe else []), *(overrides or [])]
    recipe = "" if "=" in recipe else recipe
    if folder is not None and recipe:
        fail("name a recipe or --run, not both: a run has settings of its own")

    async def start() -> None:
        settings = command.settings_of(folder, given) if folder else read_config(recipe, given)
        await command.run_probe(settings, tasks, every_source, folder)

    run_to_end(start)
