"""Whether training continues while a checkpoint is written, and the shared-memory folder it is copied from.

Ranks and scorers write their files there in the time of a copy. The driver then copies them to the disk,
while training continues. This takes memory for the whole checkpoint meanwhile, and works on one machine only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED = Path("/dev/shm")  # of Linux; a file there is memory
GROUP = Path("/sys/fs/cgroup")  # a container's limits
LIMITS = (  # its limit and its use, in the two versions of control groups
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
SHARE = 0.5  # of the free memory that a copy may take; rollouts and engines need some meanwhile
GIB = 2**30


@dataclass(frozen=True)
class Way:
    """How a checkpoint is written."""

    beside: bool  # while training continues, which waits only for a copy in memory; or while training waits
    reason: str

    def __str__(self) -> str:
        when = "while training continues" if self.beside else "while training waits"
        return f"checkpoints are written {when}: {self.reason}"


def choose(size: int, machines: int, memory: float, shared: float) -> Way:
    """Choose how a checkpoint is written.

    Args:
        size: bytes that it is expected to have.
        machines: that the run may use.
        memory: bytes that this machine, or the run's container on it, has free; shared: as files of `SHARED`.
    """
    if machines > 1:
        return Way(False, f"the run may use {machines} machines, which share no memory")
    copy, needs, free = f"a copy in {SHARED}", f"{size / GIB:.2f} GiB", min(memory, shared)
    if size > SHARE * free:
        return Way(False, f"{copy} takes {needs}, more than half of the {free / GIB:.2f} GiB that are free")
    return Way(True, f"{copy} temporarily takes {needs} of memory")


def free_memory() -> tuple[float, float]:
    """Bytes of memory that are free here, and those that files of `SHARED` may take (0 without it)."""
    free = float(psutil.virtual_memory().available)
    for limit, used in LIMITS:
        if (GROUP / limit).is_file() and (most := (GROUP / limit).read_text().strip()) != "max":
            free = min(free, int(most) - int((GROUP / used).read_text()))
    return free, float(shutil.disk_usage(SHARED).free) if SHARED.is_dir() else 0.0


class StagingFolder:
    """A folder in shared memory that is removed when this process ends, even if it is killed."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hindsight-checkpoint-", dir=SHARED))
        # It waits for the end of its input, which SIGKILL for this process brings, too.
        self._remover = subprocess.Popen(
            ["sh", "-c", 'read -r _; rm -rf -- "$0"', str(self.folder)],
            stdin=subprocess.PIPE,
            env={"PATH": os.defpath},  # no secrets
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )

    def remove(self) -> None:
        """Remove the folder, if that has not been done."""
        self._remover.communicate()
