"""Draws BFCL's turns: messages as text, calls with their results, and what its tool `diff` finds."""

from __future__ import annotations

import json

from hindsight.envs.drawing import Block, tool_calls


def blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The interface of `hindsight.envs.drawing`."""
    return [drawn for block in tool_calls(observation, action, feedback) for drawn in _with_diff(block)]


def _with_diff(block: Block) -> list[Block]:
    """A call of `diff` with the lines that it found; any other block as it is."""
    if block.get("name") != "diff":
        return [block]
    try:
        found = json.loads(block.get("result", ""))
    except (ValueError, RecursionError):  # the text may be anything
        return [block]
    if (
        not isinstance(found, dict)
        or list(found) != ["diff_lines"]
        or not isinstance(found["diff_lines"], str)
    ):
        return [block]
    call = {key: value for key, value in block.items() if key != "result"}
    return [call, {"kind": "diff", "lines": found["diff_lines"].split("\n")}]
