"""Passages, and where they are searched: in memory, or on a server for the official corpus."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.lucene import Index

Dialect = Literal["search_r1", "verl_agent"]
TRIES = 3  # of a request to a server
PATIENCE = 15.0  # seconds for one of them


@dataclass(frozen=True)
class Passage:
    """One entry of the corpus."""

    id: str
    title: str
    text: str


class Retriever(ABC):
    """Finds passages."""

    @abstractmethod
    def search(self, query: str, most: int) -> list[Passage]:
        """The best passages, best first.

        Raises:
            EnvError: the search failed.
        """


class LocalRetriever(Retriever):
    """BM25 over passages in memory; read-only once it is built."""

    def __init__(self, passages: Iterable[Passage]) -> None:
        self._passages = {passage.id: passage for passage in passages}
        self._index = Index((one.id, f"{one.title} {one.text}") for one in self._passages.values())

    def search(self, query: str, most: int) -> list[Passage]:
        return [self._passages[found] for found in self._index.search(query, most)]


class RemoteRetriever(Retriever):
    """A server with the interface of Search-R1's or of verl-agent's retriever (POST /retrieve)."""

    def __init__(self, url: str, dialect: Dialect) -> None:
        import httpx

        self._url, self._dialect = url, dialect
        self._client = httpx.Client(transport=httpx.HTTPTransport(retries=TRIES - 1), timeout=PATIENCE)

    def search(self, query: str, most: int) -> list[Passage]:
        import httpx

        asked: dict[str, Any] = {"topk": most, "return_scores": True}
        asked |= {"queries": [query]} if self._dialect == "search_r1" else {"query": query}
        try:
            answer = self._client.post(self._url, json=asked).raise_for_status().json()
            return [_read(entry) for entry in answer["result"][0][:most]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
            raise EnvError(
                f"the retriever at env.retriever_url = {self._url} failed: {type(error).__name__}: {error}"
            ) from error


def read_corpus(file: Path) -> Iterator[Passage]:
    """The passages of a file in the format of wiki-18: lines of {"id", "contents": "\\"Title\\"\\ntext"}.

    Raises:
        DataMissing: the file is missing, or a line has another form.
    """
    for number, row in enumerate(read_lines(file), start=1):
        try:
            yield _passage(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataMissing(
                f'{file}, line {number}: it must have "id" and "contents" ({error!r})'
            ) from error


def read_lines(file: Path) -> Iterator[Any]:
    """The objects of a file of JSON lines.

    Raises:
        DataMissing: the file is missing or no JSON.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise DataMissing(f"{file} cannot be read as JSON lines: {error}") from error


def _read(entry: Any) -> Passage:
    return _passage(entry["document"])


def _passage(row: Any) -> Passage:
    title, _, text = row["contents"].partition("\n")
    return Passage(str(row.get("id", "")), title.strip().strip('"'), text.strip())
