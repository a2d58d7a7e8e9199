"""Checkpoints: whole or not there, the newest kept, the previous one safe."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from hindsight.learner.checkpoint import CheckpointError, complete, latest, step_of, writing


def write(root, step, keep=2, size=0, text="weights"):
    with writing(root, step, keep, size) as folder:
        (folder / "rank0").mkdir()
        (folder / "rank0" / "state.bin").write_text(text)


def test_nothing_is_there_before_the_block_ends(tmp_path):
    with writing(tmp_path, 3, keep=1) as folder:
        (folder / "half").write_text("…")
        assert latest(tmp_path) is None
    assert step_of(latest(tmp_path)) == 3 and (latest(tmp_path) / "half").exists()
    assert [child.name for child in tmp_path.iterdir()] == ["step-00000003"]


def test_the_newest_are_kept_by_step(tmp_path):
    for step in (5, 10, 100, 1000):
        write(tmp_path, step)
    assert [step_of(folder) for folder in complete(tmp_path)] == [100, 1000]


def test_an_error_leaves_the_previous_one(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(OSError, match="full"), writing(tmp_path, 2, keep=1) as folder:
        (folder / "state.bin").write_text("part")
        raise OSError("disk full")
    assert (
        step_of(latest(tmp_path)) == 1 and (latest(tmp_path) / "rank0" / "state.bin").read_text() == "weights"
    )
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_crash_left_is_never_the_latest_and_goes_away(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".step-00000009").mkdir()
    (tmp_path / ".step-00000009" / "half").write_text("…")
    assert step_of(latest(tmp_path)) == 1
    write(tmp_path, 2)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(("size", "free"), [(1000, 999), (0, 6)])
def test_a_disk_without_room_is_refused_before_writing(tmp_path, monkeypatch, size, free):
    write(tmp_path, 1)  # seven bytes: the least that the next one is taken to need
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - free, free))
    with pytest.raises(CheckpointError, match="free some space"):
        write(tmp_path, 2, size=size)
    assert step_of(latest(tmp_path)) == 1


def test_a_step_is_never_written_over(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="step-00000001 exists: resume from it"):
        write(tmp_path, 1, text="other")
    assert (latest(tmp_path) / "rank0" / "state.bin").read_text() == "weights"
