"""Deadlines on every wait, and a watchdog that shows where a run stands still."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hindsight.cluster.failures import RunError
from hindsight.envs.runtime.remote import WATCHDOG

T = TypeVar("T")


class Stalled(RunError):
    """Nothing moved for `cluster.stall_timeout` seconds."""


class Watchdog:
    """Runs beside a coroutine and ends it when nobody has called `beat` for too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.doing = "starting"
        self.last = time.monotonic()
        self.waits: list[float] = []

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """A wait with a deadline of its own, `seconds`, in which nothing else need move."""
        self.waits.append(seconds)
        try:
            yield
        finally:
            self.waits.remove(seconds)
            self.last = time.monotonic()

    def beat(self, doing: str) -> None:
        """Something moved; `doing` is what the run does now."""
        self.doing, self.last = doing, time.monotonic()

    async def guard(self, main: Awaitable[T]) -> T:
        """The result of `main`.

        Raises:
            Stalled: nothing moved; stacks of threads and tasks are on stderr.
        """
        WATCHDOG.set(self)  # so that every remote call of `main` tells its deadline
        task: asyncio.Future[T] = asyncio.ensure_future(main)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=min(5.0, self.seconds / 4))
                allowed = max(self.seconds, *self.waits, 0.0)
                if not task.done() and time.monotonic() - self.last > allowed:
                    self._print_stacks()
                    raise Stalled(
                        f"nothing moved for {allowed:.0f} s while {self.doing}; stacks are on stderr. If the "
                        "machine is only slow, raise cluster.stall_timeout, or the deadline of that wait."
                    )
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=10)

    @staticmethod
    def _print_stacks() -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        pending: set[asyncio.Task[Any]] = asyncio.all_tasks()
        for task in pending:
            task.print_stack(limit=8, file=sys.stderr)
