"""Questions to a judge, parsed answers, and a parser for JSON in free text. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


class Unreadable(ValueError):
    """A judge's answer cannot be parsed. It is counted, and its trajectory trains without hindsight."""


@dataclass(frozen=True)
class Question:
    """A question about a trajectory that can be shortened to fit a context."""

    write: Callable[[int], str]  # maximum characters of the trajectory -> the question
    tokens: int = 0  # tokens the answer needs, if more than judge.max_tokens


@dataclass(frozen=True)
class Reading:
    """The hints parsed from one answer."""

    texts: dict[int, str] = field(default_factory=dict)  # turn -> hint
    unreadable: int = 0  # answers without any hint, and turns missing from an answer


def json_objects(answer: str) -> Iterator[dict[str, Any]]:
    """Yield every outermost JSON object in a text, including those in a truncated list."""
    decoder, start = json.JSONDecoder(), answer.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):  # not JSON, or a truncated object
            end = start + 1
        else:
            yield found
        start = answer.find("{", end)


def words(value: Any) -> str:
    """Return a JSON string with whitespace normalized and lone surrogates replaced; "" for other values."""
    return " ".join(value.encode(errors="replace").decode().split()) if isinstance(value, str) else ""


def listed(answer: str, name: str) -> list[dict[str, Any]]:
    """Return the objects of the list `name`, even if the list is truncated or missing (one object per line).

    Raises:
        Unreadable: there is no JSON object.
    """
    found = list(json_objects(answer))
    if not found:
        raise Unreadable(f"no JSON object in {answer[:200]!r}")
    lists = [one[name] if isinstance(one.get(name), list) else [one] for one in found]
    return [item for items in lists for item in items if isinstance(item, dict)]
