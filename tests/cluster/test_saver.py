"""When a checkpoint is written while training continues, and what is left if that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import hindsight.cluster.saver
import hindsight.learner.checkpoint
from hindsight.cluster.report.timeline import Timeline
from hindsight.cluster.saver import Saver
from hindsight.cluster.watch import Watchdog
from hindsight.configs.paths import SOURCE
from hindsight.configs.schema import Checkpoint, Config
from hindsight.learner import staging
from hindsight.learner.checkpoint import CheckpointError, complete, verify_checkpoint
from hindsight.learner.staging import GIB, choose, free_memory


@pytest.mark.parametrize(
    ("size", "machines", "memory", "shared", "beside"),
    [
        (4 * GIB, 1, 8 * GIB, 8 * GIB, True),
        (4 * GIB, 1, 7 * GIB, 8 * GIB, False),
        (4 * GIB, 1, 8 * GIB, 7 * GIB, False),  # a container's default is 64 MiB
        (4 * GIB, 1, 8 * GIB, 0, False),  # no such folder
        (4 * GIB, 2, 8 * GIB, 8 * GIB, False),
    ],
)
def test_memory_decides_when_a_checkpoint_is_written(
    size: int, machines: int, memory: float, shared: float, beside: bool
) -> None:
    way = choose(size, machines, memory, shared)
    assert way.beside == beside and ("while training continues" in str(way)) == beside
    assert machines > 1 or "4.00 GiB" in way.reason


@pytest.mark.parametrize("names", staging.LIMITS)
def test_a_containers_limit_counts(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "GROUP", tmp_path)
    unlimited, _ = free_memory()
    for name, number in zip(names, (GIB, GIB - 4096), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{number}\n")
    assert free_memory()[0] == 4096 < unlimited
    (tmp_path / names[0]).write_text("max\n")
    assert free_memory()[0] > 4096


KILLED = """
import sys
from hindsight.learner.staging import StagingFolder
stage = StagingFolder()
(stage.folder / "part").write_text("weights")
print(stage.folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_in_memory_when_the_driver_is_killed(number: int) -> None:
    env = os.environ | {"PYTHONPATH": SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert (folder / "part").exists()
        process.send_signal(number)
    until = time.monotonic() + 30
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not folder.exists()


class Learner:
    """Writes one file; notes where."""

    def __init__(self) -> None:
        self.folders = list[Path]()

    async def save(self, folder: Path) -> None:
        self.folders.append(folder)
        (folder / "learner").mkdir()
        (folder / "learner/rank0").write_text(f"weights {len(self.folders)}")

    async def save_model(self, folder: Path) -> None:
        folder.mkdir()


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shared memory of the test's own."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr(staging, "SHARED", shared)
    monkeypatch.setattr(hindsight.cluster.saver, "living_nodes", lambda: [{}])
    return shared


def saver(out: Path, learner: Learner, said: list[str]) -> Saver:
    actors: Any = SimpleNamespace(learner=learner, critic=None, scorers=dict, checkpoint_bytes=1)
    view: Any = SimpleNamespace(say=said.append)
    out.mkdir(exist_ok=True)
    config = Config(out=str(out), checkpoint=Checkpoint(keep=9))
    return Saver(config, actors, Timeline(out), view, Watchdog(60))


def test_training_goes_on_while_one_checkpoint_is_written(
    tmp_path: Path, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, said, events = Learner(), list[str](), list[str]()
    own, publish = saver(tmp_path / "run", learner, said), hindsight.cluster.saver.publish

    async def slowly(folder: Path, root: Path, step: int, keep: int) -> None:
        await asyncio.sleep(0.2)
        await publish(folder, root, step, keep)
        events.append(f"whole {step}")

    async def train() -> None:
        for step in (1, 2):
            await own.write(step, {"step": step})
            events.append(f"trained {step}")
            assert own.publishing is not None and not own.publishing.done()
        await own.end(None, None)

    monkeypatch.setattr(hindsight.cluster.saver, "publish", slowly)
    asyncio.run(train())
    assert events == ["trained 1", "whole 1", "trained 2", "whole 2"]  # one at a time
    assert all(folder.parent == stages for folder in learner.folders) and list(stages.iterdir()) == []
    for number, folder in enumerate(complete(own.root), start=1):
        verify_checkpoint(folder)
        assert (folder / "learner/rank0").read_text() == f"weights {number}"
    assert len(said) == 1 and said[0].startswith("checkpoints are written while training continues")


def test_without_room_for_a_copy_training_waits(
    tmp_path: Path, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hindsight.cluster.saver, "free_memory", lambda: (0.0, 0.0))
    learner, said = Learner(), list[str]()
    own = saver(tmp_path / "run", learner, said)
    asyncio.run(own.write(1, {"step": 1}))
    assert own.publishing is None and [folder.name for folder in complete(own.root)] == ["step-00000001"]
    assert said[0].startswith("checkpoints are written while training waits: a copy in")


@pytest.mark.parametrize("fails", ["the copy", "the disk"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_nothing(
    fails: str, tmp_path: Path, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device", str(target))

    learner, said = Learner(), list[str]()
    own = saver(tmp_path / "run", learner, said)

    async def first() -> None:
        await own.write(1, {"step": 1})
        await own.settle()

    asyncio.run(first())
    if fails == "the disk":
        monkeypatch.setattr(hindsight.learner.checkpoint.shutil, "copyfile", full)
        named = r"step 2 cannot be written: .*No space left .*/\.step-00000002/.*step-00000001 is intact"
    else:
        own.actors.learner = None
        named = "step 2"

    async def train(hide: BaseException | None) -> None:
        with suppress(AssertionError):
            await own.write(2, {"step": 2})
        while own.publishing is not None and not own.publishing.done():
            await asyncio.sleep(0.01)
        await own.end(None, hide) if hide else await own.check()

    if fails == "the disk":
        with pytest.raises(CheckpointError, match=named):
            asyncio.run(train(None))
        asyncio.run(train(KeyError("what ended the run")))
        assert "No space left" in said[-1]  # said, and the other error is raised
    else:
        asyncio.run(train(None))
    assert [folder.name for folder in own.root.iterdir()] == ["step-00000001"]
    assert list(stages.iterdir()) == []


def test_after_a_signal_nobody_waits(tmp_path: Path, stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(600)

    monkeypatch.setattr(hindsight.cluster.saver, "publish", never)
    own = saver(tmp_path / "run", Learner(), [])

    async def train() -> None:
        await own.write(1, {"step": 1})
        await asyncio.sleep(0.1)
        await own.end(None, asyncio.CancelledError())

    began = time.monotonic()
    asyncio.run(train())
    assert time.monotonic() - began < 60 and list(stages.iterdir()) == []
