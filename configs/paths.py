"""Where the package, its caches and a run's output are: paths that hold on every node."""

from __future__ import annotations

import os
from pathlib import Path

import hindsight

# The folder that makes `import hindsight` work; Ray's workers and child processes get it on their PYTHONPATH.
SOURCE = str(Path(hindsight.__file__).absolute().parents[1])


def cache_root() -> Path:
    """The folder for embedded models, generated games and interpreters.

    $HINDSIGHT_CACHE, or `hindsight` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache).
    """
    if override := os.environ.get("HINDSIGHT_CACHE"):
        return Path(override).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hindsight"


def is_upload(folder: Path) -> bool:
    """Whether `folder` is Ray's copy of a submitted job's working directory, which Ray eventually deletes."""
    return "working_dir_files" in folder.parts


def lasting(path: str | Path) -> Path:
    """`path` made absolute. In a submitted job, relative paths are placed in ~/hindsight."""
    path, here = Path(path).expanduser(), Path.cwd()
    return (Path.home() / "hindsight" if is_upload(here) else here) / path
