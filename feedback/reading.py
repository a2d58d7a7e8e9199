"""Questions to a judge, parsed answers, and a parser for JSON in free text. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hindsight.envs.tool_calls import DEPTH

# A bracket or separator, the quote of a string, or a scalar of any spelling
TOKEN = re.compile(r'[ \t\n\r]*(?:([{}\[\],:])|(")[^"\\]*(?:\\.[^"\\]*)*"|[-+.\w]+)', re.DOTALL)
START = re.compile(r'\{[ \t\n\r]*["}]')
KEY, SCALAR = '"', "a"
VALUE = '{["a'


class Unreadable(ValueError):
    """A judge's answer cannot be parsed. It is counted, and its trajectory trains without hindsight."""


@dataclass(frozen=True)
class Question:
    """A question about a trajectory that can be shortened to fit a context."""

    write: Callable[[int], str]  # maximum characters of the trajectory -> the question
    tokens: int = 0  # tokens the answer needs, if more than judge.max_tokens


@dataclass(frozen=True)
class Note:
    """What a judge said of one turn, for people. The teacher reads hints alone."""

    kind: str  # "diagnosis" (HERO), "target" (HINT-SD), or what a source of your own says
    text: str


@dataclass(frozen=True)
class Reading:
    """The hints parsed from one answer."""

    texts: dict[int, str] = field(default_factory=dict)  # turn -> hint
    unreadable: int = 0  # answers without any hint, and turns or entries missing from one
    notes: dict[int, Note] = field(default_factory=dict)  # by turn


def json_objects(answer: str) -> Iterator[dict[str, Any]]:
    """Yield every outermost JSON object in a text, including those in a truncated list.

    What is nested more than DEPTH deep is no object. The time is linear in the length of the text.
    """
    ends: dict[int, int] = {}
    at = 0
    while brace := START.search(answer, at):
        start = brace.start()
        if start not in ends:
            _find_ends(answer, start, ends)
        end = ends[start]
        if end:
            try:
                yield json.loads(answer[start:end])
            except ValueError:  # well nested, but not JSON: at most DEPTH objects contain the fault
                end = 0
        at = end or start + 1


def _find_ends(text: str, start: int, ends: dict[int, int]) -> None:
    """Find the ends of the object at `start` and of all objects in it, in one pass.

    A scan for each brace would be quadratic where many objects are never closed.

    Args:
        ends: receives the position behind each object by that of its brace; 0 if it does not end or is nested
            too deeply.
    """
    opened: list[tuple[int, str, int]] = []  # position, bracket and depth so far of what is not closed
    wanted, at = "{", start  # the kinds of tokens that may come next
    while (token := TOKEN.match(text, at)) and (kind := token[1] or token[2] or SCALAR) in wanted:
        at = token.end()
        if kind in "{[":
            opened.append((at - 1, kind, 1))
            wanted = KEY + "}" if kind == "{" else VALUE + "]"
        elif kind in ":,":
            wanted = KEY if kind == "," and opened[-1][1] == "{" else VALUE
        elif kind == KEY and wanted.startswith(KEY):
            wanted = ":"
        else:
            if kind in "}]":
                place, _, depth = opened.pop()
                ends[place] = at if depth <= DEPTH else 0
                if not opened or depth > DEPTH:
                    break
                outer = opened[-1]
                opened[-1] = (*outer[:2], max(outer[2], depth + 1))
            wanted = ",}" if opened[-1][1] == "{" else ",]"
    ends.update((place, 0) for place, _, _ in opened)


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
