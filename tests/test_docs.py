"""The documentation: links and anchors resolve, commands are valid, and what is generated is up to date."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.configs.check import check_config
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.reference import reference

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")])
FENCE = re.compile(r"^(?P<fence>```+)(?P<kind>[^\n]*)\n(?P<body>.*?)^(?P=fence) *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
START_NOTHING = ("plan", "config", "methods", "new")  # besides `envs play --prompt`
PLACEHOLDERS = ("NAME", "FOLDER", "…")  # such a command is a pattern
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def slug(heading: str) -> str:
    """The anchor of a heading, on the repository's page and in the site."""
    text = re.sub(r"\]\([^)]*\)", "]", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of a page."""
    wrong = []
    for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        path, _, anchor = found["target"].partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(found["target"])
    return wrong


@every_page
def test_links_and_anchors_resolve(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
    page = PROJECT / "docs/methods.md"
    text = "[a](nowhere.md) [b](#methods) [c](#nowhere) `[d](e.md)` [f](../README.md#hindsight)"
    text += "\n```\n[g](h)\n```\n"
    assert broken(page, text) == ["nowhere.md", "#nowhere"]
    assert slug("`env.name` × [GRPO](x.md), SERL") == "envname--grpo-serl"


def test_the_site_lists_every_page() -> None:
    """The other direction, that what it lists exists, is checked by `make docs`."""
    listed = re.findall(r"(\w[\w-]*\.md)", (PROJECT / "mkdocs.yml").read_text())
    assert {page.name for page in PROJECT.glob("docs/*.md")} <= set(listed)


def test_the_reference_of_settings_is_up_to_date() -> None:
    written = (PROJECT / "docs/settings.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m hindsight.configs.reference > docs/settings.md"


@dataclass(frozen=True)
class Command:
    """A line of a block of shell code that calls `hindsight`, or `make` with overrides."""

    page: str
    words: tuple[str, ...]


def commands(page: Path) -> Iterator[Command]:
    """The commands in a page's blocks of shell code, without comments."""
    for block in FENCE.finditer(page.read_text(encoding="utf-8")):
        if block["kind"].strip() not in ("bash", "console"):
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "--" in words and "hindsight" in words[words.index("--") :]:  # ray job submit … -- hindsight …
                words = words[words.index("--") + 1 :]
            if words and words[0] in ("hindsight", "make"):
                yield Command(page.name, tuple(words))


def parsed(words: tuple[str, ...]) -> tuple[str, dict[str, object]]:
    """The name of a `hindsight` command and its parameters.

    Raises:
        click.UsageError: there is no such command, option or argument.
    """
    command, arguments, names = typer.main.get_command(app), list(words[1:]), []
    while (known := getattr(command, "commands", None)) is not None:
        if not arguments or arguments[0] not in known:
            raise click.UsageError(f"no command {arguments[:1]}")
        names.append(arguments.pop(0))
        command = known[names[-1]]
    return " ".join(names), command.make_context(names[-1], arguments).params


COMMANDS = [command for page in PAGES for command in commands(page)]


def test_commands_of_the_documentation_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command parses, its recipe and settings load, and those that start nothing run."""
    monkeypatch.chdir(tmp_path)
    for name in ("PIP_FIND_LINKS", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "set")
    assert len(COMMANDS) > 40
    wrong, seen = [], set()
    for command in COMMANDS:
        if command.words in seen:
            continue
        seen.add(command.words)
        find = make_problem if command.words[0] == "make" else hindsight_problem
        if problem := find(command.words):
            wrong.append(f"{command.page}: {' '.join(command.words)}: {problem}")
    assert wrong == []


def make_problem(words: tuple[str, ...]) -> str:
    """What is wrong with a `make` command."""
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    if unknown := {word for word in words[1:] if "=" not in word} - targets:
        return f"no target {unknown}"
    given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    return problems("alfworld", " ".join(given).split()) if words[1:2] == ("train",) else ""


def hindsight_problem(words: tuple[str, ...]) -> str:
    """What is wrong with a `hindsight` command."""
    try:
        name, given = parsed(words)
    except click.UsageError as error:
        return error.format_message()
    if any(mark in word for word in words for mark in PLACEHOLDERS):
        return ""
    if name in START_NOTHING or given.get("prompt"):
        done = CliRunner().invoke(app, list(words[1:]))
        return "" if done.exit_code == 0 else done.output or str(done.exception)
    if isinstance(recipe := given.get("recipe"), str):
        overrides = given.get("overrides")
        settings = list(overrides) if isinstance(overrides, list | tuple) else []
        if "=" in recipe:  # `hindsight eval RUN`, whose settings are those of the run
            recipe, settings = "alfworld", [recipe, *settings]
        return problems(recipe or "alfworld", settings)
    return ""


def problems(recipe: str, overrides: list[str]) -> str:
    """What is wrong with the settings of a command."""
    try:
        return "; ".join(check_config(load_config(recipe, overrides)))
    except ConfigError as error:
        return str(error)
