"""Draws AppWorld's turns: a piece of Python and what it printed."""

from __future__ import annotations

from hindsight.envs.drawing import Block, plain_blocks, text_blocks


def blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The interface of `hindsight.envs.drawing`."""
    if not action.strip():
        return plain_blocks(observation, action, feedback)
    return [
        *text_blocks(observation),
        {"kind": "code", "language": "python", "text": action, "output": feedback},
    ]
