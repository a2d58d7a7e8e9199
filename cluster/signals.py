"""SIGTERM and SIGINT: the first ends a run in order, the second ends the process at once."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from hindsight.cluster.failures import Interrupted
from hindsight.cluster.run import Run
from hindsight.envs.runtime.remote import RemoteDefect, RemoteError
from hindsight.learner.checkpoint import CheckpointError
from hindsight.learner.rank import LearnerError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0  # seconds from the signal for what must not be cut short: an update, and the checkpoint
CLOSING = 60.0  # seconds for the end of actors, trackers and Ray


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first SIGTERM or SIGINT cancel the running task in this block.

    `ray.init` installs handlers of its own, so call it before.

    Raises:
        Interrupted: instead of the cancellation.
    """
    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), list[int]()
    assert task is not None

    def receive(number: int) -> None:
        received.append(number)
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        name = signal.Signals(number).name
        print(f"{name}: ending the run; another signal ends it at once", file=sys.stderr, flush=True)
        task.cancel()

    for each in SIGNALS:
        loop.add_signal_handler(each, receive, each)
    try:
        yield
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        if not received:
            for each in SIGNALS:
                loop.remove_signal_handler(each)


async def train_or_save(run: Run, training: asyncio.Task[T]) -> T:
    """Return the result of `training`; if a signal cancels this, save the last finished step.

    An update or a checkpoint that has begun ends before. What is not saved after GRACE seconds is not saved.
    """
    try:
        return await asyncio.shield(training)
    except asyncio.CancelledError:
        try:
            async with asyncio.timeout(GRACE), run.changes:
                if training.done():  # it failed while this waited
                    return training.result()
                training.cancel()
                await asyncio.wait({training})
                run.view.say(await run.save_rest())
        except (RemoteError, RemoteDefect, LearnerError, CheckpointError) as error:
            run.view.say(f"no checkpoint: {error}")
        except TimeoutError:
            run.view.say(f"no checkpoint: {run.watchdog.doing} did not end within {GRACE:g} s")
        finally:
            training.cancel()
        raise


def go_on() -> None:
    """The process does not end after all."""
    faulthandler.cancel_dump_traceback_later()


def end_within(seconds: float) -> None:
    """End the process, with stack traces and exit status 1, unless it has ended by then."""
    faulthandler.dump_traceback_later(seconds, exit=True)
