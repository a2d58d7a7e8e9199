"""Imports run one way, checked in the source of every package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("configs", "envs", "rollout", "feedback", "teacher", "learner", "cluster")
PROJECT = Path(__file__).resolve().parent.parent
FILES = sorted(file for package in PACKAGES for file in (PROJECT / package).rglob("*.py"))


def packages_imported(source: str) -> set[str]:
    """The packages named by any import in `source`, at any depth, TYPE_CHECKING blocks included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: name the package, relative imports hide it"
            names.add(node.module or "")
    bare = {name.partition(".")[0] for name in names} & set(PACKAGES)
    assert not bare, f"import hindsight.{bare.pop()}: the bare name would be a second copy of the package"
    return {name.split(".")[1] for name in names if name.startswith("hindsight.")} & set(PACKAGES)


def test_every_package_has_files() -> None:
    assert {file.relative_to(PROJECT).parts[0] for file in FILES} == set(PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_imports_run_one_way(file: Path) -> None:
    package = file.relative_to(PROJECT).parts[0]
    allowed = set(PACKAGES[: PACKAGES.index(package) + 1])
    assert packages_imported(file.read_text()) <= allowed


def test_the_reader_of_runs_needs_no_actors() -> None:
    """`cluster/report` works offline; torch is needed only by what writes the record of what is trained."""
    code = """
import importlib, pkgutil, sys
import hindsight.cluster.report as report
names = [module.name for module in pkgutil.iter_modules(report.__path__)]
for name in sorted(names, key=lambda name: name in ("record", "recorder")):
    importlib.import_module(f"hindsight.cluster.report.{name}")
    heavy = {"ray", "torch", "vllm", "deepspeed", "hindsight.cluster.start", "hindsight.rollout.engine"}
    print(name, *sorted(heavy & {*sys.modules}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    *readers, record, recorder = [line.split() for line in found.splitlines()]
    assert len(readers) > 10 and {tuple(own[1:]) for own in readers} == {()}
    assert (record[0], recorder[0]) == ("record", "recorder") and {*record[1:], *recorder[1:]} <= {"torch"}


def test_a_wrong_import_is_seen() -> None:
    source = "def f():\n    from hindsight.cluster.train import run\n    import numpy, hindsight.envs.base\n"
    assert packages_imported(source) == {"cluster", "envs"}


def test_a_bare_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="second copy"):
        packages_imported("from envs.base import TextEnv")
