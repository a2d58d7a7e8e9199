"""Rules for every Python file of the project: its size, its names, its docstrings, no swallowed errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import hindsight

PROJECT = Path(__file__).resolve().parent.parent
FILES = sorted(
    file
    for folder in ("configs", "envs", "rollout", "feedback", "teacher", "learner", "cluster", "tests")
    for file in (PROJECT / folder).rglob("*.py")
)
LISTS = sorted([*PROJECT.glob("requirements/*.txt"), *PROJECT.glob("envs/*/requirements.txt")])
# Functions that may catch everything, because they hand every error to another process as data.
BROAD = frozenset(
    {
        "envs/appworld/world.py:attempt",
    }
)
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))


def broad_handlers(tree: ast.AST) -> list[ast.ExceptHandler]:
    """Handlers of every error (bare, Exception, BaseException) that do not end by raising one."""

    def broad(kind: ast.expr | None) -> bool:
        parts = kind.elts if isinstance(kind, ast.Tuple) else [kind]
        return kind is None or any(
            isinstance(part, ast.Name) and part.id in ("Exception", "BaseException") for part in parts
        )

    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [node for node in handlers if broad(node.type) and not isinstance(node.body[-1], ast.Raise)]


@every_file
def test_files_and_functions_are_short(file: Path) -> None:
    source = file.read_text()
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


@every_file
def test_errors_are_not_swallowed(file: Path) -> None:
    tree = ast.parse(file.read_text())
    allowed = {
        id(handler)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and f"{file.relative_to(PROJECT)}:{node.name}" in BROAD
        for handler in broad_handlers(node)
    }
    assert [handler.lineno for handler in broad_handlers(tree) if id(handler) not in allowed] == []


def test_broad_handlers_are_seen() -> None:
    kinds = ("(OSError, Exception): pass", "OSError: pass", "Exception: raise", ": pass")
    source = "".join(f"try: pass\nexcept {kind}\n" for kind in kinds)
    assert [handler.lineno for handler in broad_handlers(ast.parse(source))] == [2, 8]


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.name)
def test_package_lists_hold_versions_only(file: Path) -> None:
    for line in file.read_text().splitlines():
        pinned = re.fullmatch(r"[a-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^\s/:]+( ; .*)?", line)
        left_out = re.fullmatch(r'[a-z0-9-]+ ; sys_platform == "never"', line)
        assert pinned or left_out or line.startswith("#"), line


# Read by other interpreters, which this one cannot import.
ELSEWHERE = (
    "hindsight.__main__",
    "hindsight.envs.appworld.mini",
    "hindsight.envs.appworld.server",
    "hindsight.envs.appworld.world",
)


def undocumented(namespace: Mapping[str, object], module: str) -> list[str]:
    """Public methods of a module's public classes that neither they nor a class they extend documents."""
    classes = [one for one in namespace.values() if inspect.isclass(one) and one.__module__ == module]
    return [
        f"{one.__module__}.{one.__name__}.{name}"
        for one in classes
        for name, member in vars(one).items()
        if not one.__name__.startswith("_") and not name.startswith("_")
        if inspect.isfunction(member) or isinstance(member, (property, staticmethod, classmethod))
        if not inspect.getdoc(getattr(one, name))
    ]


def test_public_methods_are_documented_where_they_are_declared() -> None:
    """The linter cannot know which methods implement a documented interface."""
    found = pkgutil.walk_packages(hindsight.__path__, "hindsight.")
    names = [module.name for module in found if module.name not in ELSEWHERE]
    assert len(names) > 100
    assert [gap for name in names for gap in undocumented(vars(importlib.import_module(name)), name)] == []


class Base:
    def documented(self) -> None:
        """It does nothing."""


class Mine(Base):
    def documented(self) -> None: ...

    def undocumented(self) -> None: ...

    def _private(self) -> None: ...


def test_an_undocumented_method_is_found() -> None:
    assert undocumented({"Mine": Mine}, __name__) == [f"{__name__}.Mine.undocumented"]


# Names that several modules share because whoever calls them knows the module and not the function.
SHARED = {
    "main": "a process starts with it",
    "blocks": "the interface of a drawing (`envs.drawing`): one in each `*_drawing.py`",
}


def defined(node: ast.stmt) -> str | None:
    """The name of a class, a function or an alias of a type; of anything else None."""
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return name
        case ast.Assign(value=ast.Call(func=ast.Name("TypeVar"))):
            return None
        case ast.Assign(targets=[ast.Name(name)]) if name[:1].isupper() and not name.isupper():
            return None if "_" in name or len(name) == 1 else name
    return None


def shared_names(sources: Mapping[str, str]) -> list[str]:
    """Public classes, functions and types that several files define, and where; `sources` by file."""
    homes: dict[str, list[str]] = {}
    for file, source in sources.items():
        for node in ast.parse(source).body:
            if name := defined(node):
                homes.setdefault(name, []).append(f"{file}:{node.lineno}")
    return [
        f"{name} in {', '.join(places)}"
        for name, places in homes.items()
        if len(places) > 1 and not name.startswith("_") and name not in SHARED
    ]


def test_every_public_class_and_function_has_a_name_of_its_own() -> None:
    package = [file for file in FILES if file.relative_to(PROJECT).parts[0] != "tests"]
    shared = shared_names({str(file.relative_to(PROJECT)): file.read_text() for file in package})
    assert not shared, f"give each of these a name that says what it does: {'; '.join(shared)}"


def test_a_shared_name_is_found() -> None:
    sources = {"a.py": "async def check(): ...\ndef main(): ...", "b.py": "def main(): ...\nclass check: ..."}
    assert shared_names(sources) == ["check in a.py:1, b.py:2"]
    aliases = "Row = dict[str, int]\nLIMIT = 3\nT = TypeVar('T')\nAny_Thing = 1"
    assert shared_names({"a.py": aliases, "b.py": aliases}) == ["Row in a.py:1, b.py:1"]
