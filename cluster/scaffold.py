"""`hindsight new`: files that users start from, which are the examples under other names."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

KINDS = {  # kind -> its example
    "env": "env.py",
    "feedback": "feedback.py",
    "judge": "judge.py",
    "advantage": "advantage.py",
    "signal": "teacher_signal.py",
    "tracker": "tracker.py",
    "method": "method.yaml",
}


class ScaffoldError(ValueError):
    """The file cannot be written; the message says why."""


def scaffold(kind: str, name: str, folder: Path) -> tuple[Path, str]:
    """Write NAME.py (or NAME.yaml for a method) into `folder`.

    Returns:
        the file, and the command that uses it.

    Raises:
        ScaffoldError: there is no such kind, the name is not an identifier, or the file exists.
    """
    if kind not in KINDS:
        raise ScaffoldError(f"Unknown kind {kind!r}. Use one of {', '.join(KINDS)}")
    if not name.isidentifier() or name != name.lower() or iskeyword(name):
        raise ScaffoldError(f"{name!r} cannot be the name of a module: use lower-case letters, digits and _")
    example = KINDS[kind]
    path = folder / f"{name}{Path(example).suffix}"
    if path.exists():
        raise ScaffoldError(f"{path} exists: choose another name, or remove it")
    if find_spec(name) is not None:
        raise ScaffoldError(f"{name!r} is already the name of an importable module: choose another")
    text = files("hindsight.examples").joinpath(example).read_text(encoding="utf-8")
    camel = "".join(part.capitalize() for part in name.split("_"))
    text = text.replace("Example", camel).replace("example_advantage", name).replace('"guess"', f'"{name}"')
    text = text.replace(example, path.name)
    path.write_text(text, encoding="utf-8")
    command = re.search(r"hindsight train .*", text)
    assert command is not None, "every example shows the command that uses it"
    return path, command[0]
