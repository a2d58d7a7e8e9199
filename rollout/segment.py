"""Weights in shared memory: one process writes, others on the same machine map and read the same pages.

A segment is a memfd. It has no name that could outlive a crash: the kernel frees it with the last process
that maps it, also after kill -9. The size of /dev/shm, which many containers limit to 64 MB, does not matter.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hindsight.rollout.weights import WeightSet

BOOT = Path("/proc/sys/kernel/random/boot_id")  # of the machine and all its containers
MAPPED = 4  # segments of a learner: of the newest weights, and of those that teacher and reference follow


class SegmentError(RuntimeError):
    """There is not enough memory for a segment."""


class SegmentUnreachable(RuntimeError):
    """A segment is on another machine, or its owner is hidden or has ended."""


@dataclass(frozen=True)
class SegmentHandle:
    """How other processes find a segment."""

    boot: str  # of the machine
    path: str
    inode: int
    size: int  # bytes


class Segment:
    """Memory of this process that others of the same user on this machine can map."""

    def __init__(self, size: int) -> None:
        """Reserve `size` bytes; they are zero.

        Raises:
            SegmentError: there is not enough memory.
        """
        descriptor = os.memfd_create("hindsight-weights")
        weakref.finalize(self, os.close, descriptor)
        try:
            os.posix_fallocate(descriptor, 0, size)  # or a missing page would end the process by SIGBUS
        except OSError as error:
            raise SegmentError(
                f"no shared memory for {size / 2**20:.0f} MiB of weights ({error.strerror}): give this "
                "machine or container more memory, or train an adapter (learner.lora.rank)"
            ) from error
        self.data: np.ndarray = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)  # (size,)
        path, inode = f"/proc/{os.getpid()}/fd/{descriptor}", os.fstat(descriptor).st_ino
        self.handle = SegmentHandle(BOOT.read_text().strip(), path, inode, size)


@lru_cache(maxsize=MAPPED)  # mapping anew would cost a page fault for each page
def attach(handle: SegmentHandle) -> np.ndarray:
    """Map a segment, read-only: (size,) uint8.

    Raises:
        SegmentUnreachable: this process cannot open it.
    """
    try:
        if BOOT.read_text().strip() != handle.boot:
            raise SegmentUnreachable("the weights are in the memory of another machine")
        descriptor = os.open(handle.path, os.O_RDONLY)
    except OSError as error:
        raise SegmentUnreachable(
            f"{handle.path} cannot be opened ({error.strerror}): processes of one machine share weights only "
            "if they run as the same user and see each other in /proc"
        ) from error
    try:
        found = os.fstat(descriptor)
        if (found.st_ino, found.st_size) != (handle.inode, handle.size):
            raise SegmentUnreachable(f"{handle.path} is not the segment of {handle.size} bytes any more")
        return np.frombuffer(mmap.mmap(descriptor, handle.size, prot=mmap.PROT_READ), np.uint8)
    finally:
        os.close(descriptor)


def fetch(weights: WeightSet) -> np.ndarray:
    """The bytes of a set of weights, read-only: mapped from its segment, or else from the object store.

    Raises:
        SegmentUnreachable: the segment cannot be mapped here, and there is no copy in the object store.
    """
    if (mapped := _mapped(weights)) is not None:
        return mapped
    import ray

    data: Any = weights.data
    found: np.ndarray = ray.get(data)  # without a deadline: whoever calls the actor that fetches has one
    return found


def _mapped(weights: WeightSet) -> np.ndarray | None:
    """The segment, or None if there is a copy for those who cannot map it."""
    if weights.segment is None:
        return None
    try:
        return attach(weights.segment)
    except SegmentUnreachable:
        if weights.data is None:
            raise
        return None


class Mirror:
    """Where processes of this machine find weights that may be on another one."""

    def __init__(self) -> None:
        self.copy: Segment | None = None

    def find(self, weights: WeightSet) -> SegmentHandle:
        """The weights' own segment, or a copy of it, which the next call overwrites.

        Raises:
            SegmentUnreachable: as `fetch`. SegmentError: there is not enough memory for a copy.
        """
        if weights.segment is not None and _mapped(weights) is not None:
            return weights.segment
        flat = fetch(weights)
        if self.copy is None or self.copy.data.size != flat.size:
            self.copy = Segment(flat.size)
        np.copyto(self.copy.data, flat)
        return self.copy.handle
