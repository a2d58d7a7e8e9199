"""JSON lines in UTF-8, compressed if the name ends with `.gz`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hindsight.cluster.failures import RunError
from hindsight.envs.runtime.files import atomic_write

Row = dict[str, Any]  # one line
LEVEL = 3  # of gzip: higher ones take several times as long, and make the files of tokens a fifth smaller


class LineError(RunError):
    """A line is not a JSON object."""


def read_rows(file: Path) -> list[Row]:
    """Every complete line of a file; [] if there is none. What a killed process was writing is left out.

    Raises:
        LineError: a complete line is not a JSON object, or the file is not what its name says.
    """
    if not file.exists():
        return []
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise LineError(f"{file} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):  # splitlines would split at U+2028, too
        if not line.strip():  # people may edit failures.jsonl
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LineError(f"{file}, line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise LineError(f"{file}, line {number}, is not a JSON object")
        rows.append(row)
    return rows


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file, or replace it, atomically; creates its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = _encode(rows)
    atomic_write(file, gzip.compress(content, LEVEL, mtime=0) if file.suffix == ".gz" else content)


def append_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append lines to a file; not for compressed ones."""
    with file.open("ab") as opened:
        opened.write(_encode(rows))


def _encode(rows: Iterable[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace")  # of a lone surrogate, that is JSON's own escape
