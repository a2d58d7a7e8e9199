"""Draws Search-QA: what was searched and found, the answer, and whether it was right."""

from __future__ import annotations

import re

from hindsight.envs.drawing import Block, text_blocks

FOUND = re.compile(r"<information>(.*?)</information>", re.DOTALL)
ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
DOCUMENT = re.compile(r"^Doc \d+(?=\()", re.MULTILINE)


def blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The interface of `hindsight.envs.drawing`."""
    return [*_draw(observation), *_act(action), *_draw(feedback)]


def _draw(words: str) -> list[Block]:
    found = FOUND.search(words)
    if found is None:
        return text_blocks(words)
    passages = [part.strip() for part in DOCUMENT.split(found[1]) if part.strip()]
    listed: Block = {"kind": "list", "title": "Passages", "items": passages}
    return [*text_blocks(words[: found.start()]), listed, *text_blocks(words[found.end() :].strip())]


def _act(action: str) -> list[Block]:
    found = ACTION.fullmatch(action.strip())
    if found is None:
        return text_blocks(action)
    name = "query" if found[1] == "search" else "text"
    return [{"kind": "call", "name": found[1], "arguments": {name: found[2].strip()}}]
