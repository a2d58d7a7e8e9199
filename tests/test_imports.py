"""Imports run one way through the house, seen in the source of every room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOMS = ("configs", "envs", "rollout", "feedback", "teacher", "learner", "cluster")
PROJECT = Path(__file__).resolve().parent.parent
FILES = sorted(file for room in ROOMS for file in (PROJECT / room).rglob("*.py"))


def rooms_imported(source: str) -> set[str]:
    """The rooms named by any import in `source`, at any depth, TYPE_CHECKING blocks included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: name the room, relative imports hide it"
            names.add(node.module or "")
    bare = {name.partition(".")[0] for name in names} & set(ROOMS)
    assert not bare, f"import hindsight.{bare.pop()}: the bare name would be a second copy of the package"
    return {name.split(".")[1] for name in names if name.startswith("hindsight.")} & set(ROOMS)


def test_every_room_has_files() -> None:
    assert {file.relative_to(PROJECT).parts[0] for file in FILES} == set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_run_one_way(file: Path) -> None:
    room = file.relative_to(PROJECT).parts[0]
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    assert rooms_imported(file.read_text()) <= allowed


def test_a_wrong_import_is_seen() -> None:
    source = "def f():\n    from hindsight.cluster.train import run\n    import numpy, hindsight.envs.base\n"
    assert rooms_imported(source) == {"cluster", "envs"}


def test_a_bare_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="second copy"):
        rooms_imported("from envs.base import TextEnv")
