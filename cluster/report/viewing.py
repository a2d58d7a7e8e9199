"""What `hindsight view` does: opens run folders, then serves or exports their pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hindsight.cluster.report.export import ExportError, export
from hindsight.cluster.report.pages import Pages
from hindsight.cluster.report.run_folder import RunFolder, RunFolderError, short_names
from hindsight.cluster.report.show import find_stage

DEMO = Path(__file__).absolute().parent / "demo"  # one run folder per method


class ViewError(RuntimeError):
    """Nothing can be shown; the message says what is wrong and what to do."""


def view_runs(
    folders: Sequence[Path],
    port: int,
    follow: bool,
    out: Path | None,
    demo: bool,
    say: Callable[[str], Any],
    own_drawings: bool = False,
    stages: str = "",
    last: int = 0,
) -> None:
    """Serve the pages of run folders until a signal ends it, or write them to the folder `out`.

    Args:
        own_drawings: see `Pages`.
        stages, last: of an export, see `chosen`.

    Raises:
        ViewError: a folder is no run's, `out` is in use, or the port is taken.
    """
    if demo:
        folders = [*folders, *sorted(folder for folder in DEMO.iterdir() if folder.is_dir())]
    if not folders:
        raise ViewError("nothing to show: name the folder of a run, such as runs/nano, or use --demo")
    if follow and out is not None:
        raise ViewError("--follow needs the server, and --export writes what is there now: use one of them")
    if (stages or last) and out is None:
        raise ViewError(
            "--stages and --last choose what --export writes: add it; the server shows everything"
        )
    try:
        opened = [RunFolder(folder) for folder in folders]
        runs = [
            (name, Pages(run, own_drawings, chosen(run, stages, last)))
            for name, run in zip(short_names(folders), opened, strict=True)
        ]
        about = {"version": version("hindsight-rl"), "follow": follow}
        if out is not None:
            size = export(runs, out, about)
            say(f"wrote {size / 2**20:.1f} MiB; open {out.absolute() / 'index.html'}")
            return
        _serve(runs, about, port, say)
    except (RunFolderError, ExportError) as error:
        raise ViewError(str(error)) from error


def chosen(run: RunFolder, stages: str = "", last: int = 0) -> set[str] | None:
    """The keys of some stages of a run; None if nothing is chosen.

    Args:
        stages: as `hindsight show` names them, with commas: "2,after-RL".
        last: that many training steps, and the evaluations since.

    Raises:
        RunFolderError: the run has no such stage.
    """
    if not (stages or last):
        return None
    named = {find_stage(run, name.strip())[0].key for name in stages.split(",") if name.strip()}
    steps = [stage.step for stage in run.steps() if stage.training][-last:] if last else []
    return named | {stage.key for stage in run.steps() if steps and stage.step >= steps[0]}


def _serve(
    runs: Sequence[tuple[str, Pages]], about: dict[str, Any], port: int, say: Callable[[str], Any]
) -> None:
    from hindsight.cluster.report.serve import HOST, PortTaken, listen, serve

    try:
        with listen(port) as listening:
            say(f"http://{HOST}:{listening.getsockname()[1]}/  (Ctrl-C ends it)")
            serve(runs, about, listening)
    except PortTaken as error:
        raise ViewError(str(error)) from error
    except KeyboardInterrupt:
        pass
