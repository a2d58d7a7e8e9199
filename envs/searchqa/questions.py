"""Questions of a data set: JSON lines, or the parquet files that Search-R1 publishes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hindsight.configs.packages import missing
from hindsight.envs.base import DataMissing
from hindsight.envs.searchqa.corpus import read_lines

COLUMNS = ("data_source", "question", "golden_answers")  # of Search-R1's files; the others repeat them
ANSWERS = ("answers", "golden_answers")  # either name will do


def question_file(folder: Path, split: str) -> Path:
    """Where the questions of a split are: `SPLIT.parquet` if there is one and no `SPLIT.jsonl`."""
    lines, table = (folder / f"{split}.{suffix}" for suffix in ("jsonl", "parquet"))
    return table if table.exists() and not lines.exists() else lines


def read_questions(file: Path) -> Iterator[Any]:
    """The rows of a file.

    Raises:
        DataMissing: it is missing or has another format, or the package that reads parquet is not installed.
    """
    return read_table(file) if file.suffix == ".parquet" else read_lines(file)


def read_table(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, with COLUMNS only.

    Raises:
        DataMissing: as `read_questions`.
    """
    if needed := missing("pyarrow"):
        raise DataMissing(f"{file} needs {needed}; or write its rows as JSON lines into {file.stem}.jsonl")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(columns=COLUMNS):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise DataMissing(f"{file} cannot be read as parquet: {error}") from error


def answers_of(row: dict[str, Any]) -> list[str]:
    """The gold answers of a row.

    Raises:
        KeyError: it has none.
    """
    found = next((row[name] for name in ANSWERS if row.get(name)), None)
    if not isinstance(found, list):
        raise KeyError("answers")
    return [str(answer) for answer in found]
