"""The run's folder: one writer, the checkpoint to resume from, a disk that is full."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import hindsight.cluster.commands
from hindsight.cluster import signals
from hindsight.cluster.cli import common
from hindsight.cluster.commands import expected_errors, train_run
from hindsight.cluster.failures import RunError
from hindsight.cluster.folder import StorageError, open_folder, sole_writer, storing
from hindsight.cluster.heal import STARTS, Starts
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.prepare import continued, require_same_run
from hindsight.cluster.report.timeline import Timeline
from hindsight.configs.method import Loss
from hindsight.configs.schema import Config, Model, Tracking
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.feedback.anchors import AnchorError
from hindsight.learner.checkpoint import OtherFormat, verify_checkpoint, write_state, writing
from hindsight.learner.rank import RanksLost
from hindsight.rollout.models import ModelMissing
from hindsight.teacher.plan import BudgetError
from hindsight.teacher.scorer import WeightsError

HOLDER = """
import sys
from pathlib import Path
from hindsight.cluster.folder import sole_writer
with sole_writer(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""


def checkpoint(root: Path, step: int) -> Path:
    async def write() -> None:
        async with writing(root, step, keep=9) as folder:
            write_state(folder, {"step": step})

    asyncio.run(write())
    return root / f"step-{step:08d}"


def test_a_second_writer_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        where = rf"another run is writing to .*run: process {first.pid} on {socket.gethostname()}\. Wait"
        with pytest.raises(RunError, match=where), sole_writer(tmp_path / "run", print):
            pass
        first.kill()
    with sole_writer(tmp_path / "run", print):
        assert f"process {os.getpid()} " in (tmp_path / "run/.lock").read_text()


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with sole_writer(tmp_path, said.append):
        assert len(said) == 1 and "has no file locks (No locks available)" in said[0]


def test_a_damaged_checkpoint_is_passed_over_and_its_step_written_again(tmp_path: Path) -> None:
    config, said = Config(out=str(tmp_path), resume="auto"), []
    root = tmp_path / "checkpoints"
    assert open_folder(config, said.append) is None
    whole, damaged = checkpoint(root, 10), checkpoint(root, 20)
    (damaged / "driver.json").write_text('{"step": 2')
    assert open_folder(config, said.append) == whole
    assert said[-1].startswith("warning: step-00000020 is damaged (driver.json is cut off or not JSON")
    assert said[-1].endswith("it is now damaged-step-00000020")
    verify_checkpoint(checkpoint(root, 20))
    assert open_folder(config, said.append) == damaged and len(said) == 3  # without a warning


def test_without_a_whole_checkpoint_nothing_is_changed(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (10, 20):
        (checkpoint(root, step) / "driver.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        RunError, match=r"step-00000020: driver.json is missing; step-00000010: .*another `out`"
    ):
        open_folder(Config(out=str(tmp_path), resume="auto"), print)
    with pytest.raises(RunError, match=r"already holds a run .*step-00000020.*resume=auto"):
        open_folder(Config(out=str(tmp_path)), print)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_version_is_refused_and_keeps_its_name(tmp_path: Path) -> None:
    """It is whole, though this version cannot read it, and going back before it would remove its steps."""
    root = tmp_path / "checkpoints"
    checkpoint(root, 10)
    newer = root / "step-00000020"
    newer.mkdir()
    (newer / "driver.json").write_text('{"step": 20, "ledger": {"next": 9}}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        OtherFormat, match=r"step-00000020 was .* another version of Hindsight \(format 1, not 3"
    ):
        open_folder(Config(out=str(tmp_path), resume="auto"), print)
    assert sorted(tmp_path.rglob("*")) == before
    assert isinstance(OtherFormat(""), expected_errors())


def test_the_record_of_a_run_without_checkpoints_is_not_removed(tmp_path: Path) -> None:
    """Somebody removed them to save room. A run that ended before its first step has left nothing to keep."""
    config = Config(out=str(tmp_path))
    Metrics(tmp_path).write(1, "sft", {"loss": 1.0})
    assert open_folder(config, print) is None
    Metrics(tmp_path).write(1, "train", {"loss": 1.0})
    for resume in ("never", "auto"):
        with pytest.raises(RunError, match="whose checkpoints are gone"):
            open_folder(replace(config, resume=resume), print)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    """Unless its timeline shows that there was one."""
    config, timeline = Config(out=str(tmp_path)), Timeline(tmp_path)
    Metrics(tmp_path).write(1, "train", {"loss": 1.0})
    with timeline.span(1, "learner", "update"):
        pass
    with pytest.raises(RunError, match=r"ended before its first checkpoint.*resume=auto"):
        open_folder(config, print)
    assert open_folder(replace(config, resume="auto"), print) is None
    with timeline.span(1, "checkpoint", "save"):
        pass
    with pytest.raises(RunError, match="whose checkpoints are gone"):
        open_folder(replace(config, resume="auto"), print)


def test_a_full_disk_is_an_error_for_the_user_and_a_defect_is_not(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, Tracking(names=[]))
    metrics.path = Path("/dev/full")
    full = pytest.raises(StorageError, match=r"No space left on device.*Free some space.*resume=auto")
    with full as caught, storing(tmp_path):
        metrics.write(1, "train", {"x": 1.0})
    assert isinstance(caught.value, expected_errors())
    with pytest.raises(FileNotFoundError), storing(tmp_path):
        (tmp_path / "nothing").read_text()


@pytest.mark.parametrize("kind", [WeightsError, AnchorError, BudgetError])
def test_what_a_scorer_or_a_method_refuses_ends_a_run_with_its_message(kind: type[Exception]) -> None:
    async def fails() -> None:
        raise kind("what is wrong")

    with pytest.raises(typer.Exit):
        common.run_to_end(fails)


def test_a_resumed_run_keeps_its_type_of_weights_where_the_plan_may_choose(tmp_path: Path) -> None:
    write_state(tmp_path, {"step": 1, "dtype": "float32"})
    assert continued(Config(model=Model(dtype="auto")), tmp_path) == Config(model=Model(dtype="float32"))
    assert continued(Config(), tmp_path) == Config()


def test_a_checkpoint_must_be_of_the_same_tasks_and_method(tmp_path: Path) -> None:
    tasks = Manifest((TaskSpec("t", "toy", "k", "train"),), ())
    write_state(tmp_path, {"step": 1, "tasks": "others"})
    with pytest.raises(RunError, match=rf"belongs to other tasks \(digest others, now {tasks.digest}\)"):
        require_same_run(Config(), tmp_path, tasks)
    write_state(tmp_path, {"step": 1, "tasks": tasks.digest})
    require_same_run(Config(), tmp_path, tasks)
    with pytest.raises(RunError, match="has no reference"):
        require_same_run(Config(steps=2, loss=Loss(kl=0.1)), tmp_path, tasks)
    (tmp_path / "reference.safetensors").touch()
    require_same_run(Config(steps=2, loss=Loss(kl=0.1)), tmp_path, tasks)


def test_what_is_wrong_is_said_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[object]()
    monkeypatch.setattr(hindsight.cluster.commands, "connect", lambda *asked: started.append(asked))
    monkeypatch.setattr(signals, "end_within", lambda seconds: None)
    (tmp_path / "empty").mkdir()
    config = Config(out=str(tmp_path / "run"), model=Model(path=str(tmp_path / "empty")))
    with pytest.raises(ModelMissing, match="has no model"):
        asyncio.run(train_run(config))
    assert "failed: " in (tmp_path / "run/log.txt").read_text()
    checkpoint(tmp_path / "other/checkpoints", 3)
    with pytest.raises(RunError, match="already holds a run"):
        asyncio.run(train_run(Config(out=str(tmp_path / "other"))))
    assert not (tmp_path / "other/log.txt").exists()  # it is the other run's
    assert not started


def test_what_is_lost_together_starts_again_even_before_the_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine and learner are lost three times before a resumed run has saved, then again after it has."""
    checkpoint(tmp_path / "checkpoints", 5)
    resumed, losses = list[str](), [None, None, None, 6, None]

    async def train(config: Config, view: object, ready: object, starts: Starts) -> None:
        starts.opened = True
        resumed.append(config.resume)
        if losses:
            if step := losses.pop(0):
                await asyncio.to_thread(checkpoint, tmp_path / "checkpoints", step)
            raise RanksLost("engine and learner are lost.")

    monkeypatch.setattr(hindsight.cluster.commands, "_train", train)
    monkeypatch.setattr(hindsight.cluster.commands, "connect", lambda *_: None)
    monkeypatch.setattr(hindsight.cluster.commands, "prepare_run", lambda *_: None)
    monkeypatch.setattr(signals, "end_within", lambda seconds: None)
    asyncio.run(train_run(Config(out=str(tmp_path), resume="auto")))
    assert resumed == ["auto"] * 6
    losses[:] = [None] * 9
    with pytest.raises(RanksLost):
        asyncio.run(train_run(Config(out=str(tmp_path / "new"))))
    assert len(losses) == 9 - 1 - STARTS and resumed[6:] == ["never", *["auto"] * STARTS]


def test_training_holds_the_folder_and_a_full_disk_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        with pytest.raises(RunError, match="another run is writing"), sole_writer(tmp_path, print):
            pass
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(hindsight.cluster.commands, "connect", connect)
    monkeypatch.setattr(hindsight.cluster.commands, "prepare_run", lambda *_: None)
    timers = list[str]()
    monkeypatch.setattr(signals, "end_within", lambda seconds: timers.append("set"))
    monkeypatch.setattr(signals, "go_on", lambda: timers.append("canceled"))
    with pytest.raises(StorageError, match=r"cannot write: .*metrics\.jsonl"):
        asyncio.run(train_run(Config(out=str(tmp_path))))
    assert timers == ["set", "canceled"]  # or it would end this process, too
    with sole_writer(tmp_path, print):
        pass
