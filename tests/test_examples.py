"""The examples are short, and `hindsight new` writes them; `test_wheel.py` trains with all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hindsight.configs.paths import SOURCE

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FILES = sorted(
    path.name for path in EXAMPLES.glob("*.*") if path.suffix in (".py", ".yaml") and path.stem[0] != "_"
)
KINDS = ("env", "feedback", "judge", "advantage", "signal", "tracker", "method")


def hindsight(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, which is not in the clone."""
    command = [sys.executable, "-m", "hindsight", *arguments]
    env = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", FILES)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_can_be_used_at_once(kind: str, tmp_path: Path) -> None:
    written = hindsight(tmp_path, "new", kind, "my_own")
    assert written.returncode == 0, written.stderr
    command = written.stdout.splitlines()[1].split()
    assert command[:3] == ["hindsight", "train", "nano"] and any("my_own" in part for part in command)
    resolved = hindsight(tmp_path, "config", "nano", *(part.strip('"') for part in command[3:]))
    assert resolved.returncode == 0, resolved.stderr
    assert "my_own" in resolved.stdout


def test_names_of_modules_are_refused(tmp_path: Path) -> None:
    for name, message in (("random", "already the name"), ("class", "cannot be"), ("My-env", "cannot be")):
        refused = hindsight(tmp_path, "new", "env", name)
        assert refused.returncode == 1 and message in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "my_own.py").write_text("mine")
    refused = hindsight(tmp_path, "new", "env", "my_own")
    assert refused.returncode == 1 and "exists" in refused.stderr
    assert (tmp_path / "my_own.py").read_text() == "mine"
