"""The reference of all settings as Markdown: `python -m hindsight.configs.reference > docs/settings.md`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import yaml

from hindsight.configs.load import load_config
from hindsight.configs.registry import REGISTRIES, Registry
from hindsight.configs.schema import Config
from hindsight.configs.setting import Setting, settings

HEAD = """\
# Settings

Every setting, as `key=value` on the command line or as YAML in a recipe; `hindsight config RECIPE` prints
the values that a recipe resolves to. This page is written by `python -m hindsight.configs.reference` from
[`configs/schema.py`](../configs/schema.py), [`configs/method.py`](../configs/method.py) and the entries that
bring settings of their own.
"""
COLUMNS = ("setting", "values", "default", "meaning")


def reference() -> str:
    """The page: a table for each section, after it one for each built-in entry that extends the section."""
    parts = [HEAD]
    found = list(settings(Config()))
    sections = dict.fromkeys(item.key.rpartition(".")[0] for item in found)
    for section in sorted(sections, key=lambda name: (bool(name), list(sections).index(name))):
        own = [item for item in found if item.key.rpartition(".")[0] == section]
        parts += [f"## {section or 'The run'}\n", _table(own)]
        if section in REGISTRIES:
            parts += _extensions(REGISTRIES[section], section)
    return "\n".join(parts)


def _extensions(registry: Registry, section: str) -> Iterator[str]:
    """A heading and a table for each built-in entry: what its settings add to the section or change."""
    shared = {item.key: item for item in settings(getattr(Config(), section), f"{section}.")}
    for name in registry.installed:
        named = registry.override(name)
        extended = getattr(load_config(None, [named]), section)
        own = [
            item
            for item in settings(extended, f"{section}.")
            if item.key != registry.key and item != shared.get(item.key)
        ]
        if own:
            yield f"With `{named}`:\n"
            yield _table(own)


def _table(items: Iterable[Setting]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells, items)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cells(item: Setting) -> tuple[str, str, str, str]:
    default = yaml.safe_dump(item.value, default_flow_style=True).removesuffix("\n...\n").strip()
    shown = "" if item.value == "" else f"`{default}`"
    return f"`{item.key}`", _escaped(item.expected), shown, _escaped(item.help)


def _escaped(text: str) -> str:
    """`text` as it is in a cell of a table: no tags, no end of the cell."""
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
