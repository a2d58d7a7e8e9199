"""Atomic checkpoint folders with checksums, so that damage is detected.

A checkpoint is written into a hidden sibling and synced to disk. A manifest then lists the size and CRC-32 of
its files, and the folder is renamed. A crash, a full disk or an error at any moment therefore leaves the
previous checkpoint as the latest one, and what happens to the files later is noticed before a run resumes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from hindsight.envs.runtime.files import atomic_write, sync
from hindsight.envs.runtime.remote import RemoteDefect

NAME = re.compile(r"step-(\d{8})")
STATE = "driver.json"  # the run's state; written again when more is known, so it has a checksum of its own
MANIFEST = "manifest.json"  # {path: [bytes, CRC-32]} of every other file
CHECKSUM = "crc32"  # the state's
FORMAT = 3  # of all of it, in the state; raised when this version's reader would misread what another wrote
CHUNK = 4 * 2**20  # bytes read at once
READERS = min(8, os.cpu_count() or 1)  # threads; CRC-32 of one takes a second per 3 GB, without the GIL
# A day of slow steps must not depend on `checkpoint.every`: at most this is lost, and one more step.
LONGEST = 30 * 60.0  # seconds between checkpoints


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the previous one is intact."""


class Damaged(CheckpointError):
    """A checkpoint is not as it was written; the message says what is wrong."""


class OtherFormat(CheckpointError):
    """Another version of Hindsight wrote this checkpoint; it may be whole."""


def complete(root: Path) -> list[Path]:
    """Return the finished checkpoints in `root`, oldest first; `verify_checkpoint` tells if one is intact."""
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if NAME.fullmatch(folder.name) and folder.is_dir())


def latest(root: Path) -> Path | None:
    """Return the checkpoint with the highest step, or None."""
    return next(reversed(complete(root)), None)


def checkpoint_step(folder: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def due(step: int, every: int, since: float) -> bool:
    """Whether a checkpoint is saved after this step, `since` seconds after the last one."""
    return step % every == 0 or since >= LONGEST


def newest_whole(root: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest checkpoint that is whole, if any, and what is wrong with each newer one.

    Raises:
        OtherFormat: a checkpoint that is as new or newer is of another format.
    """
    damaged = {}
    for folder in reversed(complete(root)):
        try:
            verify_checkpoint(folder)
        except Damaged as error:
            damaged[folder] = str(error)
        else:
            return folder, damaged
    return None, damaged


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that its step can be written again; return the new name."""
    names = (f"damaged-{folder.name}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    target = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    return folder.rename(target)


def verify_checkpoint(folder: Path) -> None:
    """Read every file of a checkpoint.

    Raises:
        Damaged: a file is missing, shorter or longer than it was, or has other bytes.
        OtherFormat: another version wrote it.
    """
    read_state(folder)
    listed = _manifest(folder)
    for name, (size, _) in listed.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if (found := (folder / name).stat().st_size) != size:
            raise Damaged(f"{name} has {found} bytes instead of {size}")
    for name, found in _sums(folder, listed).items():
        if found != listed[name][1]:
            raise Damaged(f"{name} has changed since it was written")


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote.

    Raises:
        Damaged: it is missing or not as it was written.
        OtherFormat: another version wrote it.
    """
    state = _state(folder)
    written, own = state.pop(CHECKSUM, None), _state_sum(state)
    found = state.pop("format", 1)
    if written != own and (written is not None or found == FORMAT):
        raise Damaged(f"{STATE} has changed since it was written")
    if found != FORMAT:
        raise OtherFormat(
            f"{folder} was written by another version of Hindsight (format {found}, not {FORMAT}): resume "
            "the run with that version, or start a new one with another `out`"
        )
    return state


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the run's state into a checkpoint, or replace it there."""
    plain = json.loads(json.dumps({**state, "format": FORMAT}))  # as it will be read: names are strings
    text = json.dumps({**plain, CHECKSUM: _state_sum(plain)}, indent=1)
    atomic_write(folder / STATE, text, durable=True)


@asynccontextmanager
async def writing(root: Path, step: int, keep: int, size: int = 0) -> AsyncIterator[Path]:
    """Yield a folder to write a checkpoint into; on leaving the block it becomes the latest one.

    Args, raises: as `drafting` and `publish`.
    """
    async with drafting(root, step, size) as folder:
        yield folder
    await publish(folder, root, step, keep)


@asynccontextmanager
async def drafting(root: Path, step: int, size: int = 0, stage: Path | None = None) -> AsyncIterator[Path]:
    """Yield a folder to write a checkpoint into, which `publish` then makes the latest one.

    Args:
        root: folder of all checkpoints, on a disk that every rank sees.
        size: expected bytes; where the last checkpoint was larger, that counts.
        stage: an empty folder elsewhere to write into first; by default it is a hidden one in `root`.

    Raises:
        CheckpointError: a write failed, the disk lacks room, or the step has a checkpoint already.
    """
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".step-*"):
        shutil.rmtree(stale)
    target = root / f"step-{step:08d}"
    if target.exists():
        raise CheckpointError(f"{target} exists: resume from it with resume=auto, or set another `out`")
    require_room(root, size)
    partial = root / f".{target.name}"
    try:
        with _failing(root, step):
            partial.mkdir()
            yield stage or partial
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)
        raise


async def publish(draft: Path, root: Path, step: int, keep: int) -> None:
    """Make what was written into a draft the latest checkpoint.

    Args:
        draft: what `drafting` has yielded.
        keep: newest checkpoints to keep, this one included; older ones go once it is complete.

    Raises:
        CheckpointError: a write failed.
    """
    target = root / f"step-{step:08d}"
    partial = root / f".{target.name}"
    try:
        with _failing(root, step):
            if draft != partial:
                await _copy(draft, partial)
            await asyncio.to_thread(_seal, partial)
            partial.rename(target)
            sync(root)
    finally:
        await asyncio.to_thread(shutil.rmtree, partial, ignore_errors=True)  # gone after the rename
    await asyncio.to_thread(_rotate, root, keep)


@contextmanager
def _failing(root: Path, step: int) -> Iterator[None]:
    """A block in which what cannot be written is a CheckpointError."""
    try:
        yield
    except (OSError, RemoteDefect) as error:
        before = latest(root)
        kept = f"{before.name} is intact" if before else "There is no earlier one"
        raise CheckpointError(
            f"the checkpoint of step {step} cannot be written: {error}. "
            f"{kept}. Free some space or repair the disk of {root}, and continue with resume=auto"
        ) from error


async def _copy(source: Path, target: Path) -> None:
    """Copy a folder's files into another one; if that is canceled, none after the one under way."""
    for file in _files(source):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.copyfile, file, place)


def require_room(root: Path, size: int) -> None:
    """Raise CheckpointError unless the disk has room for `size` bytes, or for another of the last size."""
    needed, free = expected_bytes(root, size), shutil.disk_usage(root).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed / 2**30:.2f} GiB and {root} has {free / 2**30:.2f} GiB free: "
            "free some space, lower checkpoint.keep, or set `out` to a larger disk"
        )


def expected_bytes(root: Path, size: int) -> int:
    """Bytes of the next checkpoint: `size`, or those of the last one if it was larger."""
    previous = latest(root)
    return max(size, sum(file.stat().st_size for file in _files(previous)) if previous else 0)


def _seal(partial: Path) -> None:
    """Sync a folder to disk and write its manifest."""
    for path in partial.rglob("*"):
        sync(path)
    names = sorted(str(file.relative_to(partial)) for file in _files(partial) if file != partial / STATE)
    sums = _sums(partial, names)
    sizes = {name: (partial / name).stat().st_size for name in names}
    listed = {name: [sizes[name], sums[name]] for name in names}
    atomic_write(partial / MANIFEST, json.dumps(listed, indent=1), durable=True)


def _rotate(root: Path, keep: int) -> None:
    """Delete all but the newest. Rename before deleting: a folder named step-… must always be complete."""
    for old in complete(root)[:-keep]:
        shutil.rmtree(old.rename(old.with_name(f".{old.name}")))


def _manifest(folder: Path) -> dict[str, tuple[int, int]]:
    try:
        return {name: (size, crc) for name, (size, crc) in _json(folder, MANIFEST).items()}
    except FileNotFoundError:
        raise Damaged(f"it lacks {MANIFEST}") from None
    except (TypeError, ValueError) as error:
        raise Damaged(f"{MANIFEST} was modified after it was written") from error


def _state(folder: Path) -> dict[str, Any]:
    try:
        state = _json(folder, STATE)
    except FileNotFoundError:
        raise Damaged(f"{STATE} is missing") from None
    if "step" not in state:
        raise Damaged(f"{STATE} has no `step`")
    return state


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except ValueError as error:
        raise Damaged(f"{name} is cut off or not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Damaged(f"{name} is not an object")
    return value


def _state_sum(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _sums(folder: Path, names: Iterable[str]) -> dict[str, int]:
    """CRC-32 of files, several at a time."""
    names = list(names)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(_crc, (folder / name for name in names)), strict=True))


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
