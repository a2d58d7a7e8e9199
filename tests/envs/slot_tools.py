"""What the tests of slots, shards and the pool share."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path


def running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int, within: float = 30.0) -> bool:
    """Whether the process ends within so many seconds."""
    until = time.monotonic() + within
    while running(pid) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return not running(pid)


def run_async(test: Callable[..., Coroutine]) -> Callable:
    """Run an async test in a loop of its own; it may take five minutes, as on a busy machine."""

    @functools.wraps(test)
    def wrapper(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 300))

    return wrapper
