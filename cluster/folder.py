"""The run's folder: one writer, what it resumes from, and what happens when it cannot be written."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hindsight.cluster.failures import RunError
from hindsight.cluster.report.lines import read_rows
from hindsight.cluster.report.run_folder import METRICS, TIMELINE
from hindsight.configs.schema import Config
from hindsight.learner.checkpoint import checkpoint_step, latest, newest_whole, set_aside

LOCK = ".lock"  # held by the run that writes; the file itself stays
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of a disk without locks
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN = {errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE}  # which may concern any file


class StorageError(RunError):
    """The run's folder cannot be written, so the run ends; its last checkpoint is intact."""


def checkpoints(config: Config) -> Path:
    """Folder of the run's checkpoints."""
    return Path(config.out) / "checkpoints"


@contextmanager
def storing(out: Path) -> Iterator[None]:
    """A block in which a full, read-only or failing disk is a StorageError."""
    try:
        yield
    except OSError as error:
        ours = error.filename is not None and Path(str(error.filename)).is_relative_to(out)
        if error.errno not in FULL and not (error.errno in BROKEN and ours):
            raise
        raise StorageError(
            f"cannot write: {error}. The run has ended, and the last checkpoint in {out} is intact. "
            "Free some space or repair the disk, and continue with resume=auto, or set another `out`"
        ) from error


@contextmanager
def sole_writer(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Create the run's folder and hold its lock, which ends with the block or this process.

    Args:
        say: is told if the disk has no locks; the run then continues without a lock.

    Raises:
        RunError: another run holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"another run is writing to {out}: {file.read().strip() or 'one that has just started'}. "
                "Wait for it or end it, or set another `out`"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(
                f"warning: the disk of {out} has no file locks ({error.strerror}), so nothing stops a second "
                "run from writing there: start only one"
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def _require_unsaved(out: Path, resume: str) -> None:
    """Create the folder of a run that has no checkpoint.

    Raises:
        RunError: the record of steps is there, which a new run would remove. With resume=auto it may, if the
            timeline shows that the run ended before its first checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not any(row.get("kind") == "train" for row in read_rows(out / METRICS)):
        return
    timeline = read_rows(out / TIMELINE)
    saved = any((row["role"], row["name"]) == ("checkpoint", "save") for row in timeline)
    if saved or not timeline:  # without a timeline, nothing shows that there was none
        raise RunError(
            f"{out} holds the record of a run whose checkpoints are gone: it cannot be resumed, and a new "
            "run would remove the record. Set another `out`, or rename or delete that folder"
        )
    if resume == "never":
        raise RunError(
            f"{out} holds the record of a run that ended before its first checkpoint. Begin it again with "
            "resume=auto, which removes the record, or choose another folder with out=…"
        )


def newest_step(config: Config) -> int:
    """Finished steps of the newest checkpoint; −1: there is none."""
    newest = latest(checkpoints(config))
    return checkpoint_step(newest) if newest else -1


def open_folder(config: Config, say: Callable[[str], None]) -> Path | None:
    """Create the run's folder; return the newest whole checkpoint, if any. Damaged newer ones are renamed.

    Raises:
        RunError: the folder holds another run and `resume` is not set, or its checkpoints
            are damaged or gone: nothing has been changed.
    """
    root = checkpoints(config)
    newest = latest(root)
    if newest is None:
        _require_unsaved(Path(config.out), config.resume)
        return None
    if config.resume == "never":
        raise RunError(
            f"{config.out} already holds a run (newest checkpoint: {newest.name}). "
            "Resume it with resume=auto, or choose another folder with out=…"
        )
    say("checking the checkpoint")
    whole, damaged = newest_whole(root)
    if whole is None:
        wrong = "; ".join(f"{folder.name}: {reason}" for folder, reason in damaged.items())
        raise RunError(
            f"no intact checkpoint in {root} ({wrong}). Nothing has been changed. "
            "Restore one from a copy, or start a new run with another `out`"
        )
    for folder, reason in damaged.items():
        say(f"warning: {folder.name} is damaged ({reason}); it is now {set_aside(folder).name}")
    return whole
