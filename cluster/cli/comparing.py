"""The command that compares runs: `hindsight compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hindsight.cluster.cli.common import fail
from hindsight.cluster.report.text import PlainConsole

app = typer.Typer()


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(help="output folders; differences are from the first run")],
    x: Annotated[Literal["step", "turns", "seconds"], typer.Option(help="axis of the curves")] = "step",
    csv: Annotated[Path | None, typer.Option(help="write the points of the curves to this file")] = None,
    png: Annotated[Path | None, typer.Option(help="draw the curves into this file")] = None,
) -> None:
    """Compare runs: settings that differ, learning curves, and last evaluations paired by task."""
    from hindsight.cluster.report import compare
    from hindsight.cluster.report.run_folder import RunFolderError

    try:
        found = compare.read_runs(runs)
    except RunFolderError as error:
        fail(str(error))
    console = PlainConsole()
    if compare.differing(found):
        console.print(compare.settings_table(found))
    console.print(compare.curve_table(found, x))
    console.print(compare.final_table(found))
    for on_panel in compare.on_panels(found):
        console.print(compare.figures_table(on_panel))
        if (gains := compare.gains_table(on_panel)).row_count:
            console.print(gains)
        for line in compare.difference_lines(on_panel):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if csv:
        compare.write_csv(found, csv)
    if png:
        compare.plot_success(found, x, png)
