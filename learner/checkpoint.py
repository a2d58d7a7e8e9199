"""Atomic checkpoint folders.

A checkpoint is written into a hidden sibling, synced to disk and renamed. A crash, a full disk or an error at
any moment therefore leaves the previous checkpoint as the latest one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hindsight.envs.runtime.files import sync

NAME = re.compile(r"step-(\d{8})")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written; the previous one is intact."""


def complete(root: Path) -> list[Path]:
    """Return the complete checkpoints in `root`, oldest first."""
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if NAME.fullmatch(folder.name) and folder.is_dir())


def latest(root: Path) -> Path | None:
    """Return the checkpoint with the highest step, or None."""
    return next(reversed(complete(root)), None)


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


@contextmanager
def writing(root: Path, step: int, keep: int, size: int = 0) -> Iterator[Path]:
    """Yield a folder to write a checkpoint into; on leaving the block it becomes the latest one.

    Args:
        root: folder of all checkpoints, on a disk that every rank sees.
        keep: newest checkpoints to keep, this one included; older ones go once it is complete.
        size: expected bytes; where the last checkpoint was larger, that counts.

    Raises:
        CheckpointError: the disk lacks room, or the step has a checkpoint already.
    """
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".step-*"):
        shutil.rmtree(stale)
    target = root / f"step-{step:08d}"
    if target.exists():
        raise CheckpointError(f"{target} exists: resume from it with resume=auto, or set another `out`")
    require_room(root, size)
    partial = root / f".{target.name}"
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        partial.rename(target)
        sync(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left after the rename
    for old in complete(root)[:-keep]:
        shutil.rmtree(old)


def require_room(root: Path, size: int) -> None:
    """Raise CheckpointError unless the disk has room for `size` bytes, or for another of the last size."""
    previous = latest(root)
    needed = max(size, _bytes(previous) if previous else 0)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed / 2**30:.2f} GiB and {root} has {free / 2**30:.2f} GiB free: "
            "free some space, lower checkpoint.keep, or set `out` to a larger disk"
        )


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _sync(folder: Path) -> None:
    """Flush every file and directory below `folder` to disk, and `folder` itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
