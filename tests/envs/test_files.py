"""Atomic files and folders: racing writers, writers that fail, writers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hindsight.envs.runtime import files
from hindsight.envs.runtime.files import STALE, atomic_dir, atomic_write

MAKER = """
import sys, time
from pathlib import Path
from hindsight.envs.runtime.files import atomic_dir
folder, mark = Path(sys.argv[1]), sys.argv[2]
def make(draft):
    print("making", flush=True)
    sys.stdin.readline()
    for part in ("first", "second"):
        (draft / part).write_text(mark)
atomic_dir(folder, make)
"""


def maker(folder: Path, mark: str) -> subprocess.Popen[str]:
    """A process that is inside `make` and continues when it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder), mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout and process.stdout.readline() == "making\n"
    return process


def test_a_folder_is_made_once(tmp_path):
    folder = tmp_path / "deep" / "made"

    def fail(draft):
        (draft / "half").touch()
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        atomic_dir(folder, fail)
    assert list(folder.parent.iterdir()) == []
    atomic_dir(folder, lambda draft: (draft / "whole").touch())
    atomic_dir(folder, fail)  # not called again
    assert [path.name for path in folder.iterdir()] == ["whole"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_of_two_processes_the_first_to_finish_wins(tmp_path):
    folder = tmp_path / "made"
    early, late = maker(folder, "early"), maker(folder, "late")  # both are making it now
    for process in (early, late):
        process.communicate("\n", timeout=30)
        assert process.returncode == 0
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"first": "early", "second": "early"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_process_killed_while_making_blocks_nobody(tmp_path):
    folder = tmp_path / "made"
    killed = maker(folder, "killed")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    (draft,) = tmp_path.iterdir()
    assert not folder.exists()
    other = maker(folder, "other")
    other.communicate("\n", timeout=30)
    assert (folder / "first").read_text() == "other"
    assert draft.exists()  # it might still have been in the making

    old = time.time() - STALE - 1
    os.utime(draft, (old, old))
    (tmp_path / ".made-up").write_text("a file of someone else with such a name is no draft")
    (folder / "first").unlink(), (folder / "second").unlink(), folder.rmdir()
    atomic_dir(folder, lambda fresh: (fresh / "whole").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made-up", "made"]


def test_a_real_failure_to_write_is_raised(tmp_path):
    def full(draft):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_dir(tmp_path / "made", full)


def test_a_file_holds_the_old_content_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "älter")
    assert path.read_text(encoding="utf-8") == "älter"

    def stop(self, target):
        raise OSError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(OSError, match="stopped"):
            atomic_write(path, "newer")
    assert path.read_text(encoding="utf-8") == "älter" and list(tmp_path.iterdir()) == [path]
    atomic_write(path, b"\0newer")
    assert path.read_bytes() == b"\0newer" and list(tmp_path.iterdir()) == [path]


def test_a_durable_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(files, "sync", lambda what: synced.append((what == tmp_path, path.exists())))
    atomic_write(path, "text")
    assert synced == []
    path.unlink()
    atomic_write(path, "text", durable=True)
    assert synced == [(False, False), (True, True)]


def test_two_writers_of_a_file_do_not_share_a_draft(tmp_path):
    code = """
import sys
from pathlib import Path
from hindsight.envs.runtime.files import atomic_write
for _ in range(300):
    atomic_write(Path(sys.argv[1]), sys.argv[2] * 5000)
"""
    path = tmp_path / "file"
    path.write_text("a" * 5000)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter], env=env) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 5000, "b" * 5000}
    assert list(tmp_path.iterdir()) == [path]
