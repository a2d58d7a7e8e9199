"""What a judge is asked, what its answer is read into, and how JSON is found in it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class Unreadable(ValueError):
    """A judge's answer is not what was asked for: its trajectory trains without hindsight, and is counted."""


@dataclass(frozen=True)
class Question:
    """A question about a trajectory, as long as who asks it has room for."""

    write: Callable[[int], str]  # most characters of a trajectory that it shows -> its words
    tokens: int = 0  # that its answer needs; judge.max_tokens where that is more


@dataclass(frozen=True)
class Reading:
    """The texts of one trajectory."""

    texts: dict[int, str] = field(default_factory=dict)  # turn -> text
    unreadable: int = 0  # turns that should have been spoken of and were not


def json_objects(answer: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in a text, those of a cut-off list included."""
    decoder, start = json.JSONDecoder(), answer.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):  # text that only looks like one, or an object that is cut off
            end = start + 1
        else:
            yield found
        start = answer.find("{", end)


def words(value: Any) -> str:
    """A JSON value as words: its text with white space made even, without halves of characters; "" where it
    is no text."""
    return " ".join(value.encode(errors="replace").decode().split()) if isinstance(value, str) else ""


def listed(answer: str, name: str) -> list[dict[str, Any]]:
    """The objects of the list `name`, wherever they stand: in that list, cut off, or one a line.

    Raises:
        Unreadable: there is no JSON object at all.
    """
    found = list(json_objects(answer))
    if not found:
        raise Unreadable(f"no JSON object in {answer[:200]!r}")
    lists = [one[name] if isinstance(one.get(name), list) else [one] for one in found]
    return [item for items in lists for item in items if isinstance(item, dict)]
