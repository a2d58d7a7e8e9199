"""`hindsight new`: files that users start from, which are the examples under other names."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

KINDS = {  # kind -> its example
    "env": "env.py",
    "feedback": "feedback.py",
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
    if not name.isidentifier() or name != name.lower():
        raise ScaffoldError(f"{name!r} cannot be the name of a module: use lower-case letters, digits and _")
    example = KINDS[kind]
    path = folder / f"{name}{Path(example).suffix}"
    if path.exists():
        raise ScaffoldError(f"{path} exists: choose another name, or remove it")
    text = files("hindsight.examples").joinpath(example).read_text(encoding="utf-8")
    camel = "".join(part.capitalize() for part in name.split("_"))
    text = text.replace("Example", camel).replace("example_", f"{name}_").replace(example, path.name)
    path.write_text(text, encoding="utf-8")
    command = re.search(r"hindsight train .*", text)
    assert command is not None, "every example shows the command that uses it"
    return path, command[0]
