"""A watchdog that stops a run without progress and shows where it hangs."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import time
from collections.abc import Awaitable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from hindsight.cluster.failures import RunError
from hindsight.envs.runtime.remote import WATCHDOG

T = TypeVar("T")


class Stalled(RunError):
    """There was no progress for `cluster.stall_timeout` seconds."""


class Watchdog:
    """Runs next to a coroutine and cancels it if `beat` is not called for too long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.doing = "starting"
        self.last = time.monotonic()
        self.waits: list[float] = []

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """A wait with its own deadline of `seconds`, during which no progress is expected."""
        self.waits.append(seconds)
        try:
            yield
        finally:
            self.waits.remove(seconds)
            self.last = time.monotonic()

    def beat(self, doing: str) -> None:
        """Report progress; `doing` is the current activity."""
        self.doing, self.last = doing, time.monotonic()

    async def guard(self, main: Awaitable[T], *helpers: Awaitable[None]) -> T:
        """Return the result of `main`; `helpers` run at the same time, and an error in one of them ends it.

        Raises:
            Stalled: no progress; stacks of threads and tasks were written to stderr.
        """
        WATCHDOG.set(self)  # every remote call of `main` reports its deadline
        task: asyncio.Future[T] = asyncio.ensure_future(main)
        running: set[asyncio.Future[Any]] = {task, *map(asyncio.ensure_future, helpers)}
        try:
            while not task.done():
                quarter = min(5.0, self.seconds / 4)
                done, _ = await asyncio.wait(running, timeout=quarter, return_when=asyncio.FIRST_COMPLETED)
                for helper in done - {task}:
                    helper.result()
                    running.remove(helper)
                allowed = max(self.seconds, *self.waits, 0.0)
                if not task.done() and time.monotonic() - self.last > allowed:
                    self._print_stacks()
                    raise Stalled(
                        f"no progress for {allowed:.0f} s while {self.doing}; stack traces are on stderr. "
                        "On a slow machine, raise cluster.stall_timeout or the timeout of that call."
                    )
            return task.result()
        finally:
            for one in running:
                one.cancel()
            await asyncio.wait(running, timeout=10)

    @staticmethod
    def _print_stacks() -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        pending: set[asyncio.Task[Any]] = asyncio.all_tasks()
        for task in pending:
            task.print_stack(limit=8, file=sys.stderr)


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run coroutines together until all have ended. Any exception cancels the others and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_but_stragglers(works: Sequence[Coroutine[Any, Any, T | None]], quiet: float) -> list[T | None]:
    """Run coroutines together; return their results, in order.

    Once no result but None has come for `quiet` seconds, the rest is canceled; its results are None.
    Any exception cancels all and is raised.
    """
    clock = asyncio.get_running_loop().time
    tasks = [asyncio.ensure_future(work) for work in works]
    pending, last = set(tasks), clock()
    try:
        while pending and clock() < last + quiet:
            done, pending = await asyncio.wait(
                pending, timeout=last + quiet - clock(), return_when=asyncio.FIRST_COMPLETED
            )
            if any([task.result() is not None for task in done]):
                last = clock()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return [None if task.cancelled() else task.result() for task in tasks]
