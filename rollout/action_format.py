"""How an agent answers: three forms, each with what asks for it, finds the action in it and writes it.

    tags   <action>go to desk 1</action>                   text worlds and shops
    tools  words for the user, or calls as `envs.tool_calls`    customer service, function calling
    code   one ```python block                             programs against an API

Any of them may follow a thought, <think>…</think>, in which nothing counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hindsight.envs.tool_calls import MalformedCall, read_calls
from hindsight.rollout.types import Span

OPEN, CLOSE = "<action>", "</action>"
THOUGHT, THOUGHT_END = "<think>", "</think>"
FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Form:
    """One form of answer."""

    request: str  # asks for an action alone
    request_think: str  # asks for a thought before it
    correction: str  # the observation after an answer that `find` cannot read
    find: Callable[[str], Span | None]  # the characters of the action; None: malformed
    write: Callable[[str], str]  # an action as an answer without a thought


def find_action(text: str) -> Span | None:
    """The characters of the one action between its tags, surrounding white space left out.

    Tags inside the reasoning do not count. None where there is no action, an empty one, or more than one.
    """
    body = text.rfind(THOUGHT_END) + 1
    start, end = text.find(OPEN, body), text.find(CLOSE, body)
    if start < 0 or end < start or text.count(OPEN, body) != 1 or text.count(CLOSE, body) != 1:
        return None
    return _stripped(text, start + len(OPEN), end)


def find_calls(text: str) -> Span | None:
    """The whole answer behind the thought, white space around it left out; None where it is empty or holds a
    call that cannot be read."""
    span = _stripped(text, _behind_thought(text), len(text))
    if span is not None:
        try:
            read_calls(text[span.start : span.end])
        except MalformedCall:
            return None
    return span


def find_code(text: str) -> Span | None:
    """The inside of the one fenced block behind the thought; None where it is empty, or not the only one."""
    blocks = list(FENCE.finditer(text, _behind_thought(text)))
    return _stripped(text, *blocks[0].span(1)) if len(blocks) == 1 else None


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """What tells a model of its tools whose chat template does not."""
    listed = "\n".join(json.dumps(function_schema(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these tools:\n<tools>\n{listed}\n</tools>\nTo call one, reply with\n<tool_call>\n"
        '{"name": "its name", "arguments": {"its": "arguments"}}\n</tool_call>'
    )


def function_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in the form that chat templates take."""
    return {"type": "function", "function": dict(tool)}


def without_thought(text: str) -> str:
    """A response less its reasoning; a thought that was never closed goes too."""
    return text[_behind_thought(text) :].partition(THOUGHT)[0].strip()


def _behind_thought(text: str) -> int:
    end = text.rfind(THOUGHT_END)
    return end + len(THOUGHT_END) if end >= 0 else 0


def _stripped(text: str, start: int, end: int) -> Span | None:
    inner = text[start:end]
    first = start + len(inner) - len(inner.lstrip())
    return Span(first, first + len(inner.strip())) if inner.strip() else None


FORMS: dict[str, Form] = {
    "tags": Form(
        request="Reply with your action only: <action>your action</action>",
        request_think="Reply with a short thought, then one action: "
        "<think>your thought</think><action>your action</action>",
        correction="Your reply held no action of the form <action>…</action>.",
        find=find_action,
        write=lambda action: f"{OPEN}{action}{CLOSE}",
    ),
    "tools": Form(
        request="Reply with tool calls, or with words for the user.",
        request_think="Reply with a short thought, <think>your thought</think>, and behind it tool calls, "
        "or words for the user.",
        correction="Your reply could not be read: each tool call is one JSON object with a name and "
        "arguments between <tool_call> and </tool_call>.",
        find=find_calls,
        write=lambda action: action,
    ),
    "code": Form(
        request="Reply with one block of code only:\n```python\nyour code\n```",
        request_think="Reply with a short thought, then one block of code:\n"
        "<think>your thought</think>\n```python\nyour code\n```",
        correction="Your reply held no code, or more than one block: write one block, opened by ```python "
        "and closed by ``` on a line of its own.",
        find=find_code,
        write=lambda action: f"```python\n{action}\n```",
    ),
}
