"""What a signal does to a run: what still ends, what is saved, what the process says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hindsight.cluster import signals
from hindsight.cluster.failures import Interrupted
from hindsight.cluster.run import Run, State
from hindsight.cluster.signals import interruptible
from hindsight.configs.paths import SOURCE
from hindsight.configs.schema import Config, Sft


class ToyRun(Run):
    """A run without actors, whose checkpoints are empty folders."""

    def __init__(self, out: Path) -> None:
        self.config, self.out, self.state = Config(out=str(out)), out, State(warm_started=True)
        self.changes, self.intact = asyncio.Lock(), True
        self.saver = SimpleNamespace(settle=lambda: asyncio.sleep(0))  # type: ignore[assignment]
        self.lines: list[str] = []
        view: Any = SimpleNamespace(say=self.lines.append)
        watchdog: Any = SimpleNamespace(doing="updating")
        self.view, self.watchdog = view, watchdog

    async def _save(self, beside: bool = True) -> None:
        (self.out / "checkpoints" / f"step-{self.state.step:08d}").mkdir(parents=True)

    @property
    def saved(self) -> list[str]:
        return sorted(folder.name for folder in self.out.glob("checkpoints/*"))


def interrupted(run: ToyRun, training: Any, after: float = 0.1) -> None:
    """Train; a signal comes after so many seconds."""

    async def main() -> None:
        with interruptible():
            asyncio.get_running_loop().call_later(after, os.kill, os.getpid(), signal.SIGTERM)
            await signals.train_or_save(run, asyncio.create_task(training))

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM") as caught:
            asyncio.run(main())
        assert caught.value.status == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_an_update_that_has_begun_ends_and_is_saved(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)

    async def training() -> None:
        while True:
            async with run.changing():
                await asyncio.sleep(0.3)
                run.state.step += 1
            await asyncio.sleep(30)

    interrupted(run, training())
    assert run.saved == ["step-00000001"] and run.lines == ["step 1 is saved"]


def test_a_step_that_has_a_checkpoint_is_not_saved_again(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)

    run.state.step = 1

    async def training() -> None:
        await run.save()
        await asyncio.sleep(30)

    interrupted(run, training())
    assert run.saved == ["step-00000001"] and run.lines == ["step 1 is saved"]


def test_there_is_no_checkpoint_of_a_change_that_failed(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)

    async def training() -> None:
        try:
            async with run.changing():
                run.state.step += 1
                await asyncio.sleep(0.3)
                raise ValueError("the learner is gone")
        except ValueError:
            await asyncio.sleep(30)  # it is being replaced

    interrupted(run, training())
    assert run.saved == [] and "no checkpoint of a change that failed" in run.lines[0]


def test_there_is_no_checkpoint_before_the_end_of_the_warm_start(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)
    run.state = State()
    interrupted(run, asyncio.sleep(30))
    assert run.saved == [] and "the warm start had not ended" in run.lines[0]


def test_there_is_no_checkpoint_of_an_untrained_model(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)
    run.config = replace(run.config, sft=Sft(demos=0))
    interrupted(run, asyncio.sleep(30))
    assert run.saved == [] and run.lines == ["no checkpoint: no step had been trained"]


def test_what_does_not_end_in_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE", 0.2)
    run = ToyRun(tmp_path)

    async def training() -> None:
        async with run.changing():
            await asyncio.sleep(30)

    interrupted(run, training())
    assert run.saved == [] and run.lines == ["no checkpoint: updating did not end within 0.2 s"]


def test_an_error_meanwhile_is_raised(tmp_path: Path) -> None:
    run = ToyRun(tmp_path)

    async def training() -> None:
        async with run.changing():
            await asyncio.sleep(0.3)
            raise ValueError("the learner is gone")

    async def main() -> None:
        task = asyncio.create_task(signals.train_or_save(run, asyncio.create_task(training())))
        asyncio.get_running_loop().call_later(0.1, task.cancel)
        await task

    with pytest.raises(ValueError, match="the learner is gone"):
        asyncio.run(main())
    assert run.saved == []


BLOCKED = """
import asyncio, os, signal, sys, time
from hindsight.cluster.signals import end_within, interruptible

async def main():
    with interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        finally:
            {then}
            time.sleep(30)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("then", "status", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, "SIGINT: ending the run"),
        ("end_within(0.5)", 1, "Timeout"),
    ],
)
def test_an_end_that_hangs_is_cut_short(then: str, status: int, said: str) -> None:
    """By a second signal, or after a while."""
    env = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", BLOCKED.format(then=then)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status and said in ended.stderr
