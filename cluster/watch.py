"""Deadlines on every wait, and a watchdog that shows where a run stands still."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from cluster.failures import RunError

T = TypeVar("T")


class Stalled(RunError):
    """Nothing moved for `cluster.stall_timeout` seconds."""


class Deadline(RunError):
    """One wait took longer than it may."""


async def within(seconds: float, what: str, awaitable: Awaitable[T]) -> T:
    """Await with a deadline; `what` names the wait in the error. Takes Ray object refs too."""

    async def wait() -> T:
        return await awaitable

    try:
        return await asyncio.wait_for(wait(), seconds)
    except TimeoutError as error:
        raise Deadline(f"{what} took longer than {seconds:.0f} s") from error


class Watchdog:
    """Runs beside a coroutine and ends it when nobody has called `beat` for too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.doing = "starting"
        self.last = time.monotonic()

    def beat(self, doing: str) -> None:
        """Something moved; `doing` is what the run does now."""
        self.doing, self.last = doing, time.monotonic()

    async def guard(self, main: Awaitable[T]) -> T:
        """The result of `main`.

        Raises:
            Stalled: nothing moved; stacks of threads and tasks are on stderr.
        """
        task: asyncio.Future[T] = asyncio.ensure_future(main)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=min(5.0, self.seconds / 4))
                if not task.done() and time.monotonic() - self.last > self.seconds:
                    self._print_stacks()
                    raise Stalled(
                        f"nothing moved for {self.seconds:.0f} s while {self.doing}; stacks are on stderr. "
                        "Raise cluster.stall_timeout if the machine is only slow."
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
