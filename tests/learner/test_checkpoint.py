"""Checkpoints: whole or recognized as damaged, the newest kept, the previous one safe."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from collections import namedtuple

import pytest

import hindsight.learner.checkpoint
from hindsight.envs.runtime.remote import RemoteDefect
from hindsight.learner.checkpoint import (
    LONGEST,
    CheckpointError,
    Damaged,
    checkpoint_step,
    complete,
    due,
    latest,
    newest_whole,
    read_state,
    set_aside,
    verify_checkpoint,
    write_state,
    writing,
)


def write(root, step, keep=2, size=0, text="weights", fail=None):
    async def block():
        async with writing(root, step, keep, size) as folder:
            assert (
                latest(root) is None or checkpoint_step(latest(root)) < step
            )  # nothing is there before it ends
            (folder / "rank0").mkdir()
            (folder / "rank0" / "state.bin").write_text(text)
            if fail:
                raise fail
            write_state(folder, {"step": step, "sampler": {3: [1, 2]}, "rate": 0.1})

    asyncio.run(block())
    return latest(root)


def names(root):
    return sorted(child.name for child in root.iterdir())


def test_a_checkpoint_appears_under_its_name_when_it_is_whole(tmp_path):
    folder = write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000003"] and checkpoint_step(folder) == 3
    assert names(folder) == ["driver.json", "manifest.json", "rank0"]
    assert read_state(folder) == {"step": 3, "sampler": {"3": [1, 2]}, "rate": 0.1}
    verify_checkpoint(folder)


def test_the_newest_are_kept_by_step(tmp_path):
    for step in (5, 10, 100, 1000):
        write(tmp_path, step)
    assert [checkpoint_step(folder) for folder in complete(tmp_path)] == [100, 1000]


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (RemoteDefect("learner.save failed: SafetensorError: No space left"), "learner.save failed"),
    ],
)
def test_a_failed_write_leaves_the_previous_one(tmp_path, fail, message):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=rf"of step 2 cannot be written: .*{message}.*step-00000001 is"):
        write(tmp_path, 2, keep=1, fail=fail)
    assert names(tmp_path) == ["step-00000001"]
    verify_checkpoint(latest(tmp_path))


def test_a_disk_that_is_full_for_the_manifest_leaves_the_previous_one(tmp_path, monkeypatch):
    def full(path, content, durable=False):
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text(content)

    write(tmp_path, 1)
    monkeypatch.setattr(hindsight.learner.checkpoint, "atomic_write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_another_error_passes_and_leaves_the_previous_one(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(KeyError):
        write(tmp_path, 2, fail=KeyError("a defect"))
    assert names(tmp_path) == ["step-00000001"]


def test_what_a_crash_left_is_never_the_latest_and_goes_away(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".step-00000009").mkdir()
    (tmp_path / ".step-00000009" / "half").write_text("…")
    assert checkpoint_step(latest(tmp_path)) == 1
    write(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_half_deleted_one_is_never_taken_for_whole(tmp_path, monkeypatch):
    """The process dies while it deletes the older one."""
    write(tmp_path, 1)

    def die(folder, **_):
        if folder.exists():
            (folder / "driver.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, keep=1)
    assert [folder.name for folder in complete(tmp_path)] == ["step-00000002"]
    verify_checkpoint(latest(tmp_path))


@pytest.mark.parametrize(("size", "free"), [(10**4, 10**4 - 1), (0, 6)])
def test_a_disk_without_room_is_refused_before_writing(tmp_path, monkeypatch, size, free):
    write(tmp_path, 1)  # more than seven bytes: the least that the next one is taken to need
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - free, free))
    with pytest.raises(CheckpointError, match="free some space"):
        write(tmp_path, 2, size=size)
    assert checkpoint_step(latest(tmp_path)) == 1


def test_a_step_is_never_written_over(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match="step-00000001 exists: resume from it"):
        write(tmp_path, 1, text="other")
    assert (latest(tmp_path) / "rank0" / "state.bin").read_text() == "weights"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def rewrite(file, change):
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: cut(folder / "rank0/state.bin"), "rank0/state.bin has 4 bytes instead of 7"),
        (lambda folder: flip(folder / "rank0/state.bin"), "rank0/state.bin has changed"),
        (lambda folder: shutil.rmtree(folder / "rank0"), "rank0/state.bin is missing"),
        (lambda folder: cut(folder / "driver.json"), "driver.json is cut off"),
        (lambda folder: (folder / "driver.json").write_text(""), "driver.json is cut off"),
        (
            lambda folder: rewrite(folder / "driver.json", lambda s: s.update(rate=0.2)),
            "driver.json has changed",
        ),
        (
            lambda folder: rewrite(folder / "driver.json", lambda s: s.pop("crc32")),
            "driver.json has changed",
        ),
        (lambda folder: rewrite(folder / "driver.json", lambda s: s.pop("step")), "has no `step`"),
        (lambda folder: (folder / "driver.json").write_text("[1]"), "driver.json is not an object"),
        (lambda folder: (folder / "driver.json").unlink(), "driver.json is missing"),
        (lambda folder: cut(folder / "manifest.json"), "manifest.json is cut off"),
        (lambda folder: (folder / "manifest.json").write_text('{"a": 1}'), "manifest.json was modified"),
        (lambda folder: (folder / "manifest.json").unlink(), "lacks manifest.json"),
    ],
)
def test_damage_is_recognized_and_the_one_before_is_taken(tmp_path, damage, reason):
    for step in (10, 20):
        write(tmp_path, step)
    damage(tmp_path / "step-00000020")
    with pytest.raises(Damaged, match=reason):
        verify_checkpoint(tmp_path / "step-00000020")
    whole, damaged = newest_whole(tmp_path)
    assert whole == tmp_path / "step-00000010"
    assert list(damaged) == [tmp_path / "step-00000020"] and reason in damaged[tmp_path / "step-00000020"]


@pytest.mark.parametrize("name", ["driver.json", "manifest.json"])
def test_a_flipped_bit_of_the_state_or_the_manifest_is_noticed(tmp_path, name):
    folder = write(tmp_path, 1)
    content = (folder / name).read_bytes()
    for at, byte in enumerate(content):
        if not bytes([byte]).isspace():
            (folder / name).write_bytes(content[:at] + bytes([byte ^ 1]) + content[at + 1 :])
            with pytest.raises(Damaged):
                verify_checkpoint(folder)


def test_a_damaged_step_is_written_again(tmp_path):
    for turn in ("damaged-step-00000020", "damaged-step-00000020-2"):
        folder = write(tmp_path, 20)
        assert set_aside(folder) == tmp_path / turn
    assert verify_checkpoint(write(tmp_path, 20)) is None
    assert complete(tmp_path) == [tmp_path / "step-00000020"]


def test_the_state_is_written_again_without_making_the_checkpoint_damaged(tmp_path):
    folder = write(tmp_path, 1)
    write_state(folder, {"step": 1, "evaluations": [0.5]})
    verify_checkpoint(folder)
    assert read_state(folder)["evaluations"] == [0.5]


@pytest.mark.parametrize(
    ("step", "since", "saves"),
    [(10, 0.0, True), (11, 0.0, False), (11, LONGEST - 1, False), (11, LONGEST, True), (20, LONGEST, True)],
)
def test_a_checkpoint_is_due_after_some_steps_or_half_an_hour(step, since, saves):
    assert due(step, 10, since) == saves
