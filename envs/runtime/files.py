"""Files and folders that appear complete or not at all, whatever happens to the process that writes them.

Both functions write a hidden draft next to the target and rename it. A process that is killed meanwhile
leaves its draft behind, under a name that nothing reads and no later call reuses.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

STALE = 24 * 3600.0  # seconds after which a folder's draft counts as abandoned


def atomic_dir(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`; if it does not exist yet, let `make` fill a draft of it first.

    If several processes try it at once, the first one to finish wins and the others drop their drafts.

    Args:
        make: is called with an empty folder. What it raises is passed on, and its draft is removed.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for draft in folder.parent.glob(f".{folder.name}-*"):
        with suppress(FileNotFoundError):  # its own process may be renaming it
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        make(draft)
        draft.chmod(0o755)  # mkdtemp's folder is private
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def atomic_write(path: Path, content: str | bytes, durable: bool = False) -> None:
    """Write a file, or replace it: a reader sees the old content or the new one.

    Args:
        durable: return only when the content is on disk, so that it survives a power failure.
    """
    draft = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush one file, or one folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
