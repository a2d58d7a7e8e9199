"""A folder of static files that shows runs without a server, from file:// or from any web server."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hindsight.cluster.report.pages import Pages, as_script
from hindsight.envs.runtime.files import atomic_dir

STATIC = Path(__file__).absolute().parent / "static"


class ExportError(RuntimeError):
    """Nothing was written; the message says what to do."""


def export(runs: Sequence[tuple[str, Pages]], folder: Path, about: Mapping[str, Any]) -> int:
    """Write the page and all documents of `runs` (name and pages each) into a new folder, atomically.

    Returns:
        How many bytes it wrote.

    Raises:
        ExportError: the folder exists already.
        RunFolderError: a file of a run cannot be read.
    """
    if folder.exists():
        raise ExportError(f"{folder} exists already: name a new folder with --export")

    def make(draft: Path) -> None:
        shutil.copytree(STATIC, draft, dirs_exist_ok=True)
        _write(draft, "runs", listing(runs, about))
        for number, (_, pages) in enumerate(runs):
            for address in pages.addresses():
                _write(draft, "/".join((str(number), *address)), pages.document(*address))

    atomic_dir(folder, make)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def listing(runs: Sequence[tuple[str, Pages]], about: Mapping[str, Any]) -> dict[str, Any]:
    """The document `runs`: what is shown."""
    return {**about, "runs": [name for name, _ in runs]}


def _write(folder: Path, path: str, document: dict[str, Any]) -> None:
    file = folder / "data" / f"{path}.js"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_script(path, document), encoding="ascii")
