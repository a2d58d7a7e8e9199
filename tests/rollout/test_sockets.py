"""Sockets of engines that were killed do not stay for ever."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hindsight.rollout.sockets import VARIABLE, use_own_folder


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short path, as sockets need one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.delenv(VARIABLE, raising=False)
        yield Path(folder)


def bound(path: Path, old: bool) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    if old:
        os.utime(path, (0, 0))
    return listening


def test_only_old_sockets_that_nobody_listens_on_are_removed(temporary: Path) -> None:
    use_own_folder()
    [folder] = temporary.iterdir()
    assert os.environ[VARIABLE] == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    dead, young, alive = (bound(folder / name, name != "young") for name in ("dead", "young", "alive"))
    dead.close()
    young.close()
    use_own_folder()
    assert sorted(one.name for one in folder.iterdir()) == ["alive", "young"]
    alive.close()


def test_a_path_that_is_too_long_for_sockets_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    use_own_folder()
    assert VARIABLE not in os.environ
