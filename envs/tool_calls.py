"""Tool calls as text: how to read them from an agent's answer, and how to write them.

    <tool_call>
    {"name": "cd", "arguments": {"folder": "documents"}}
    </tool_call>

The chat templates of Hermes and Qwen use this format. An answer is one or more calls, with or without words
around them, or only words: a message to the user. No part of it is ever evaluated as code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
DEPTH = 32  # most nested lists and objects of a call; what copies or prints one recurses


class MalformedCall(ValueError):
    """An answer with a tool call that cannot be read; the message is for the agent."""


@dataclass(frozen=True)
class Call:
    """One call of a tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def read_calls(answer: str) -> tuple[Call, ...]:
    """The calls of an answer, in order; none if it is a message.

    Raises:
        MalformedCall: a block is not closed, is not JSON, or is no call.
    """
    blocks, rest, at = [], [], 0
    while (opened := answer.find(OPEN, at)) >= 0 and (closed := answer.find(CLOSE, opened + len(OPEN))) >= 0:
        rest.append(answer[at:opened])
        blocks.append(answer[opened + len(OPEN) : closed])
        at = closed + len(CLOSE)
    around = "".join([*rest, answer[at:]])
    if OPEN in around or CLOSE in around:
        raise MalformedCall(f"A tool call opens with {OPEN} and ends with {CLOSE}.")
    return tuple(map(_read, blocks))


def write_calls(calls: Iterable[Call]) -> str:
    """An answer that `read_calls` reads as `calls`."""
    return "\n".join(
        f"{OPEN}\n{json.dumps({'name': call.name, 'arguments': call.arguments}, ensure_ascii=False)}\n{CLOSE}"
        for call in calls
    )


def read_json(text: str) -> Any:
    """Parse JSON that can safely be copied, compared, printed and serialized.

    Raises:
        MalformedCall: it is not JSON, or only Python's parser accepts it (NaN, lone surrogates), or it is
            nested too deeply.
    """
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
        deep = depth(found) > DEPTH
    except ValueError as error:  # RecursionError is no ValueError
        raise MalformedCall(f"A tool call has to be one JSON object: {error}.") from None
    except RecursionError:
        deep = True
    if deep:
        raise MalformedCall("A tool call is nested too deeply.")
    return found


def _read(block: str) -> Call:
    found = read_json(block)
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise MalformedCall('A tool call has the form {"name": "…", "arguments": {…}}.')
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        raise MalformedCall(f'The "arguments" of {found["name"]} have to be a JSON object.')
    return Call(found["name"], arguments)


def depth(value: Any) -> int:
    """How many lists and objects lie in one another at most."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
