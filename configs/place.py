"""Where a run and its caches lie: paths that hold on every node, and that outlive a submitted job."""

from __future__ import annotations

from pathlib import Path


def is_upload(folder: Path) -> bool:
    """Whether Ray copied this folder to a node for a submitted job: it deletes such a copy some day."""
    return "working_dir_files" in folder.parts


def lasting(path: str | Path) -> Path:
    """The path made absolute; one that is relative to Ray's copy of a project lies in ~/hindsight instead."""
    path, here = Path(path).expanduser(), Path.cwd()
    return (Path.home() / "hindsight" if is_upload(here) else here) / path
