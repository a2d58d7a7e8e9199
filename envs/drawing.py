"""Drawings: what an environment's recorded texts show, as blocks that a web page or a terminal can lay out.

    {"kind": "text", "text"}
    {"kind": "list", "title", "items": [text, …]}
    {"kind": "room", "place", "things": [text, …]}            and "carrying": [text, …] where a text says so
    {"kind": "page", "title", "items": [{"id", "title", "price"}, …], "buttons": [text, …]}
    {"kind": "call", "name", "arguments": {…}}                and "result": text if there is one
    {"kind": "code", "language", "text", "output"}
    {"kind": "diff", "lines": [text, …]}                      lines start with "-" or "+"

An environment defines its drawing in a module next to its own, called like it with `_drawing` added: for
`envs/webshop/env.py` that is `envs/webshop/env_drawing.py`, for a user's `mine.py` it is `mine_drawing.py`.
The module has one function, `blocks(observation, action, feedback)`. It is called with recorded texts alone:
no environment is created or imported, and none of its data or packages are needed. Without such a module,
texts are drawn as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from hindsight.configs.registry import ENVIRONMENTS, UnknownName
from hindsight.envs.tool_calls import CLOSE, OPEN, MalformedCall, read_calls

Block = dict[str, Any]
KINDS = ("text", "list", "room", "page", "call", "code", "diff")


class DrawingError(RuntimeError):
    """A user's drawing cannot be used; the message says why."""


def draw_turn(env_name: str, observation: str, action: str, feedback: str) -> list[Block]:
    """Draw a turn: what the agent saw, what it did, and the environment's reply, in this order.

    An empty text has no block, so a caller can draw any of the three alone. Calls and code are drawn with
    their results if action and feedback are drawn together. A text that cannot be read is drawn as it is.
    Nothing is raised: if a user's drawing fails, the first block says so and the texts follow.

    Args:
        env_name: the setting `env.name`; unknown names are drawn as text.
    """
    try:
        return _draw(env_name, observation, action, feedback)
    except DrawingError as error:
        return [*text_blocks(str(error)), *plain_blocks(observation, action, feedback)]


def text_blocks(words: str) -> list[Block]:
    """One block of text, or none if there is nothing but white space."""
    return [{"kind": "text", "text": words}] if words.strip() else []


def plain_blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The three texts as they are."""
    return [*text_blocks(observation), *text_blocks(action), *text_blocks(feedback)]


def tool_calls(observation: str, action: str, feedback: str) -> list[Block]:
    """A turn of an agent that calls tools (`envs.tool_calls`): every call with its result.

    Results are matched to calls by line, which is how environments write them; where the numbers differ, all
    results follow as text.
    """
    try:
        calls = read_calls(action)
    except MalformedCall:
        calls = ()
    if not calls:
        return plain_blocks(observation, action, feedback)
    drawn: list[Block] = [{"kind": "call", "name": call.name, "arguments": call.arguments} for call in calls]
    results = [feedback] if len(calls) == 1 else feedback.split("\n")
    matched = len(results) == len(calls)
    if matched:
        for block, result in zip(drawn, results, strict=True):
            block |= {"result": result} if result else {}
    return [
        *text_blocks(observation),
        *text_blocks(_around(action)),
        *drawn,
        *([] if matched else text_blocks(feedback)),
    ]


def _around(action: str) -> str:
    """The words around an answer's calls, which are known to be well formed."""
    words = [part.rpartition(CLOSE)[2] for part in action.split(OPEN)]
    return "\n".join(word.strip() for word in words if word.strip())


def _draw(env_name: str, observation: str, action: str, feedback: str) -> list[Block]:
    draw = _drawing(env_name)
    if env_name in ENVIRONMENTS.builtin:
        return draw(observation, action, feedback)
    try:
        return _checked(draw(observation, action, feedback))
    except Exception as error:  # the function is a user's, and may fail in any way
        raise DrawingError(f"drawing {env_name} failed: {type(error).__name__}: {error}") from error


@cache
def _drawing(env_name: str) -> Callable[[str, str, str], list[Block]]:
    """
    Raises:
        DrawingError: the module with the drawing cannot be imported, or has no function `blocks`.
    """
    try:
        module = ENVIRONMENTS.beside(env_name, "_drawing")
    except UnknownName as error:
        raise DrawingError(f"no drawing: {error}") from error
    if module is None:
        return plain_blocks
    found = getattr(module, "blocks", None)
    if not callable(found):
        raise DrawingError(
            f"no drawing: {module.__name__} has no function blocks(observation, action, feedback)"
        )
    draw: Callable[[str, str, str], list[Block]] = found
    return draw


def _checked(drawn: list[Block]) -> list[Block]:
    """
    Raises:
        TypeError, ValueError: these are no blocks.
    """
    if not isinstance(drawn, list):
        raise TypeError(f"expected a list of blocks, got {type(drawn).__name__}")
    for block in drawn:
        if not isinstance(block, dict) or block.get("kind") not in KINDS:
            raise ValueError(
                f'a block is a dict whose "kind" is one of {", ".join(KINDS)}; got {block!r:.200}'
            )
    json.dumps(drawn, allow_nan=False)
    return drawn
