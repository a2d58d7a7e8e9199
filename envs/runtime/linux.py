"""Calls to the Linux kernel that Python lacks. Any interpreter can import it: standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# linux/prctl.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
PAGE = os.sysconf("SC_PAGE_SIZE")
GONE = (FileNotFoundError, ProcessLookupError)  # what reading /proc raises for a process that has ended
KILLING = 5.0  # seconds in which killed processes end, also those that fork while they are killed


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent ends. A change of the user undoes this.

    Args:
        parent: pid of the parent; if it has ended already, this process exits at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, and let the kernel reap all children."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def hide_memory(hidden: bool) -> None:
    """Whether other processes of the user are kept from this one's memory and descriptors (ptrace and such).
    Forked processes inherit it."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(not hidden), 0, 0, 0)


def resident(pid: int) -> int:
    """Resident bytes of a process, pages that it shares included; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except GONE:
        return 0


def rollup(pid: int, field: str) -> int:
    """Bytes of a process's memory, of the fields of smaps_rollup that begin so; 0 if it is gone.

    Raises:
        PermissionError: it belongs to another user.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except GONE:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(field))


def held(pids: Collection[int]) -> int:
    """Bytes that these processes hold together: a shared page counts once, divided among all that share it;
    for a process that may not be looked into, all that is resident."""
    total = 0
    for pid in pids:
        try:
            total += rollup(pid, "Pss:")
        except PermissionError:
            total += resident(pid)
    return total


def descendants(pid: int) -> list[int]:
    """Processes that descend from this one, parents first; none that has ended and is not reaped yet."""
    found: list[int] = []
    for thread in _listed(Path(f"/proc/{pid}/task")):
        with suppress(*GONE):
            for child in map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()):
                if _lives(child):
                    found += [child, *descendants(child)]
    return found


def kill_descendants(pid: int, spared: Collection[int] = ()) -> bool:
    """Kill all descendants but `spared` until none is left; whether that succeeded in time."""
    until = time.monotonic() + KILLING
    while rest := [child for child in descendants(pid) if child not in spared]:
        for child in rest:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except GONE:
        return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except GONE:
        return False
