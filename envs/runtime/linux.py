"""Calls to the Linux kernel that Python lacks. Any interpreter can import it: standard library only."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent ends. A change of the user undoes this.

    Args:
        parent: pid of the parent; if it has ended already, this process exits at once.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
