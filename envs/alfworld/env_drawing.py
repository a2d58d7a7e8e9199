"""Draws ALFWorld's texts: a receptacle with what is on or in it, the room, the inventory."""

from __future__ import annotations

import re

from hindsight.envs.drawing import Block, text_blocks

# Parts exclude the characters that end them, so that a match takes linear time.
NAME, LIST = r"[^.,\n]+", r"[^.\n]+"
RECEPTACLE = re.compile(
    rf"(?:(?P<first>You (?:arrive at|open the) {NAME}\.) )?"
    rf"(?:On the (?P<on>{NAME}), you see (?P<things_on>{LIST})\."
    rf"|The (?P<inside>{NAME}) is open\. In it, you see (?P<things_in>{LIST})\."
    rf"|The (?P<closed>{NAME}) is closed\.)"
)
ROOM = re.compile(rf"You are in the (middle of a room)\. Looking quickly around you, you see ({LIST})\.")
FLOOR = re.compile(rf"You are facing the ({LIST})\. Next to it, you see ({LIST})\.")
INVENTORY = re.compile(rf"You are carrying: ({LIST})\.")


def blocks(observation: str, action: str, feedback: str) -> list[Block]:
    """The interface of `hindsight.envs.drawing`."""
    return [*_draw(observation), *text_blocks(action), *_draw(feedback)]


def _draw(words: str) -> list[Block]:
    return [block for paragraph in words.split("\n\n") for block in _paragraph(paragraph.strip())]


def _paragraph(words: str) -> list[Block]:
    if found := ROOM.fullmatch(words):
        return [_room(found[1], found[2])]
    if found := FLOOR.fullmatch(words):
        return [_room(f"next to {found[1]}", found[2])]
    if found := INVENTORY.fullmatch(words):
        return [{"kind": "list", "title": "You are carrying", "items": _things(found[1])}]
    if not (found := RECEPTACLE.fullmatch(words)):
        return text_blocks(words)
    if found["on"]:
        place, state, things = found["on"], "", found["things_on"]
    elif found["inside"]:
        place, state, things = found["inside"], " (open)", found["things_in"]
    else:
        place, state, things = found["closed"], " (closed)", "nothing"
    arrived = found["first"] == f"You arrive at {place}."
    return [*text_blocks("" if arrived else found["first"] or ""), _room(f"{place}{state}", things)]


def _room(place: str, things: str) -> Block:
    return {"kind": "room", "place": place, "things": _things(things)}


def _things(listed: str) -> list[str]:
    """ "a mug 1, and an egg 2" as ["mug 1", "egg 2"]."""
    if listed == "nothing":
        return []
    names = (name.removeprefix("and ") for name in listed.split(", "))
    return [name.removeprefix("an ").removeprefix("a ") for name in names]
