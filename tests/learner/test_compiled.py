"""A build of DeepSpeed's collectives is waited for while its process lives, and never longer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from hindsight.learner.compiled import only_builder

BUILD = """
import sys
from pathlib import Path
from hindsight.learner.compiled import only_builder

folder = Path(sys.argv[1])
with only_builder(folder):
    (folder / "op/lock").touch(exist_ok=False)  # as PyTorch's FileBaton does
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "op/lock").unlink()
"""
ENTER = """
import sys
from pathlib import Path
from hindsight.learner.compiled import only_builder

with only_builder(Path(sys.argv[1])):
    print(list(Path(sys.argv[1]).glob("*/lock")))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "op").mkdir()
    return tmp_path


@pytest.fixture
def builder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a build."""
    command = [sys.executable, "-c", BUILD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n"
    yield process
    process.kill()
    process.communicate()


def enter(folder: Path, timeout: float) -> str:
    command = [sys.executable, "-c", ENTER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout


def test_a_lock_file_that_nobody_holds_is_removed(folder: Path) -> None:
    (folder / "op/lock").touch()
    assert not FileBaton(str(folder / "op/lock")).try_acquire()
    with only_builder(folder):
        baton = FileBaton(str(folder / "op/lock"))
        assert baton.try_acquire()
        baton.release()


def test_a_killed_builder_blocks_nobody(folder: Path, builder: subprocess.Popen[str]) -> None:
    builder.kill()
    builder.wait()
    assert (folder / "op/lock").exists()
    assert enter(folder, timeout=60) == "[]\n"


def test_a_live_builder_is_waited_for(folder: Path, builder: subprocess.Popen[str]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        enter(folder, timeout=3)
    assert (folder / "op/lock").exists()
    builder.communicate("\n")
    assert enter(folder, timeout=60) == "[]\n"
