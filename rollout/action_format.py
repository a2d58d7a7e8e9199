"""Answer formats: how to request, parse and write an agent's action.

    tags   <action>go to desk 1</action>                     text worlds and shops
    tools  a message, or tool calls as in `envs.tool_calls`  customer service, function calling
    code   one ```python block                               programs that call an API
    search <search>…</search> or <answer>…</answer>          questions and a search engine

Any of them may follow a thought, <think>…</think>, whose content is ignored.
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
SEARCH_TAGS = ("search", "answer")
FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n", re.MULTILINE)
FENCE_END = re.compile(r"^```[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Form:
    """One answer format."""

    request: str  # asks for an action without a thought
    request_think: str  # asks for a thought and an action
    correction: str  # the observation after a malformed answer
    find: Callable[[str], Span | None]  # the action's characters; None if malformed
    write: Callable[[str], str]  # formats an action as an answer without a thought


def find_action(text: str) -> Span | None:
    """Return the characters of the action between its tags, without surrounding whitespace.

    Tags inside a thought are ignored. Return None if there is not exactly one action or it is empty.
    """
    body = text.rfind(THOUGHT_END) + 1
    start, end = text.find(OPEN, body), text.find(CLOSE, body)
    if start < 0 or end < start or text.count(OPEN, body) != 1 or text.count(CLOSE, body) != 1:
        return None
    return _stripped(text, start + len(OPEN), end)


def find_calls(text: str) -> Span | None:
    """Return the characters of the answer after the thought, without surrounding whitespace.

    Return None if it is empty or contains a malformed tool call.
    """
    span = _stripped(text, _behind_thought(text), len(text))
    if span is not None:
        try:
            read_calls(text[span.start : span.end])
        except MalformedCall:
            return None
    return span


def find_code(text: str) -> Span | None:
    """Return the contents of the code block after the thought; None if it is empty or not the only one."""
    blocks: list[tuple[int, int]] = []
    at = _behind_thought(text)
    while (opened := FENCE.search(text, at)) and (closed := FENCE_END.search(text, opened.end())):
        blocks.append((opened.end(), closed.start()))
        at = closed.end()
    return _stripped(text, *blocks[0]) if len(blocks) == 1 else None


def find_search(text: str) -> Span | None:
    """Return the characters of the one search or answer after the thought, tags included.

    Return None if there is none, more than one, or an empty one.
    """
    body = _behind_thought(text)
    found = [tag for tag in SEARCH_TAGS for _ in range(text.count(f"<{tag}>", body))]
    if len(found) != 1:
        return None
    opened, closed = f"<{found[0]}>", f"</{found[0]}>"
    start = text.find(opened, body)
    end = text.find(closed, start)
    if end < 0 or text.count(closed, body) != 1 or not text[start + len(opened) : end].strip():
        return None
    return Span(start, end + len(closed))


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Describe tools to a model whose chat template does not support them."""
    listed = "\n".join(json.dumps(function_schema(tool), ensure_ascii=False) for tool in tools)
    return (
        f"You may call these tools:\n<tools>\n{listed}\n</tools>\nTo call one, reply with\n<tool_call>\n"
        '{"name": "tool name", "arguments": {"argument": "value"}}\n</tool_call>'
    )


def function_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in the format that chat templates expect."""
    return {"type": "function", "function": dict(tool)}


def without_thought(text: str) -> str:
    """Return a response without its thought, even if the thought was never closed."""
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
        correction="Your reply contained no action of the form <action>…</action>.",
        find=find_action,
        write=lambda action: f"{OPEN}{action}{CLOSE}",
    ),
    "tools": Form(
        request="Reply with tool calls, or with a message to the user.",
        request_think="Reply with a short thought, <think>your thought</think>, then tool calls or a message "
        "to the user.",
        correction="Your reply could not be parsed. Write each tool call as one JSON object with a name and "
        "arguments between <tool_call> and </tool_call>.",
        find=find_calls,
        write=lambda action: action,
    ),
    "code": Form(
        request="Reply with one block of code only:\n```python\nyour code\n```",
        request_think="Reply with a short thought, then one block of code:\n"
        "<think>your thought</think>\n```python\nyour code\n```",
        correction="Your reply contained no code block, or more than one. Write one block that starts with "
        "```python and ends with ``` on its own line.",
        find=find_code,
        write=lambda action: f"```python\n{action}\n```",
    ),
    "search": Form(
        request="Reply with <search>words to look for</search> or, once you know it, with "
        "<answer>the answer</answer>.",
        request_think="Reply with a short thought, <think>your thought</think>, then with "
        "<search>words to look for</search> or, once you know it, with <answer>the answer</answer>.",
        correction="Your reply contained neither one <search>…</search> nor one <answer>…</answer>.",
        find=find_search,
        write=lambda action: action,
    ),
}
