"""Agent prompts against the papers' public ones: the same parts in the same order; the wording is ours.

The papers on ALFWorld, WebShop and Search-QA prompt with verl-agent's templates. From the second turn on,
their user message has the task, how many steps were taken, the last two observations and actions with their
steps' numbers, the current step and observation, the admissible actions, and the request to reason in
<think> before one <action>. The first turn's has neither the count nor a history.
"""

from __future__ import annotations

import re

import pytest
from rollout_toys import CHATML, make_tokenizer

from hindsight.configs.schema import Prompt
from hindsight.envs.alfworld.env import RULES as ALFWORLD
from hindsight.envs.base import Observation
from hindsight.envs.searchqa.env import RULES as SEARCHQA
from hindsight.envs.webshop.env import RULES as WEBSHOP
from hindsight.rollout.render import Renderer

TASK = "Your task is to: put a mug on the desk."
REQUEST = r"<think>.*</think>.*<action>.*</action>"


def user_message(seen: list[Observation], actions: list[str]) -> str:
    """What the agent is sent after these actions, with the papers' number of past turns."""
    render = Renderer(make_tokenizer(CHATML), Prompt(preset="window", think=True, window=2), 4096)
    past = list(zip(seen, actions, strict=False))
    ids = render.window(seen[0], past, seen[len(actions)], step=len(actions) + 1)
    [message] = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", render.decode(ids), re.S)
    return str(message)


def room(number: int) -> Observation:
    text = f"You are in the middle of a room.\n\n{TASK}" if number == 1 else f"You are at shelf {number}."
    return Observation(text, (f"go to shelf {number + 1}", "look"), rules=ALFWORLD)


def test_the_first_turn() -> None:
    found = user_message([room(1)], [])
    assert re.search(rf"{TASK}.*go to shelf 2, look.*{REQUEST}", found, re.S)
    assert "teps taken" not in found


def test_later_turns() -> None:
    found = user_message(
        [room(number) for number in range(1, 6)], [f"act {number}" for number in range(1, 5)]
    )
    parts = [
        *(TASK, r"taken.*4", r"3 .*shelf 3", "3 .*act 3", r"4 .*shelf 4", "4 .*act 4"),
        *(r"5.*You are at shelf 5\.", "go to shelf 6, look", REQUEST),
    ]
    assert re.search(".*".join(parts), found, re.S)
    assert "act 2" not in found and "shelf 2" not in found


def test_a_shop_is_acted_in_by_its_two_forms() -> None:
    """The pages' form, with [SEP] between quoted parts there, is compared in tests/envs/test_webshop.py."""
    assert re.search(r"search\[.*click\[", WEBSHOP, re.S) and "[SEP]" in WEBSHOP


@pytest.mark.parametrize("tag", ["search", "answer"])
def test_a_question_is_answered_in_tags(tag: str) -> None:
    assert f"<{tag}>" in SEARCHQA
