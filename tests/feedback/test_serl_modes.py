"""SERL's 21 modes, built from the table in docs/methods.md, against a second statement of their rules."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from feedback_toys import group, trajectory, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.configs.check import check_config
from hindsight.configs.load import load_config
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.judge_client import Answer
from hindsight.feedback.pool import ACTIONS_TITLE, FEEDBACK_TITLE
from hindsight.feedback.sources import FUTURE_TITLE, IMMEDIATE_TITLE, NEXT_TITLE, SUCCESS_TITLE

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
MODES = dict(re.findall(r"^\| `(\w+)` \| `(feedback\.sources=.*?)` \|", DOCS.read_text(), re.MULTILINE))
TITLES = {"S": SUCCESS_TITLE, "F": FUTURE_TITLE, "I": IMMEDIATE_TITLE, "N": NEXT_TITLE}
PARTS = {
    "successful_sample": "S",
    "future_trajectory": "F",
    "immediate_feedback": "I",
    "next_observation": "N",
}
FACTORS = ("immediate_feedback", "next_observation", "future_trajectory")
ROOMS = ("room", "hall")


def authors_names():
    """The names in the authors' release."""
    own = [*FACTORS, "successful_sample_or_immediate_feedback"]
    own += [f"successful_sample_{factor}" for factor in FACTORS]
    own += [f"successful_sample_future_trajectory_{factor}" for factor in FACTORS[:2]]
    judged = ["judge_current_traj", "judge_current_traj_on_successful_sample"]
    return [*own, *(f"anchor_{name}" for name in own), *judged, "legacy"]


@st.composite
def groups(draw):
    """A group in which every text names its turn."""
    members = []
    for index in range(draw(st.integers(1, 3))):
        won, count = draw(st.booleans()), draw(st.integers(1, 3))
        turns = []
        for number in range(count):
            said = draw(st.sampled_from([f"said{index}{number}", " "]))
            reward = (1.0 if won else draw(st.sampled_from([0.0, 0.5]))) if number == count - 1 else 0.0
            action = draw(st.sampled_from(["go", "look", None]))
            one = turn(draw(st.sampled_from(ROOMS)), action, said, f"seen{index}{number}", reward)
            turns.append(replace(one, response=f"did{index}{number}"))
        members.append(trajectory(*turns))
    return group(*members)


@cache
def loaded(mode):
    """The settings of a mode, once for all examples."""
    config = load_config(None, ["signal.name=reweight", *MODES[mode].split()])
    assert check_config(config) == []
    return config


def gathered(mode, found):
    """The hints of a mode, and the questions that its judge was asked."""
    config, asked = loaded(mode), []

    async def ask(question, schema):
        asked.append(question.write(12_000))
        return Answer("The judge's words.")

    return asyncio.run(gather_hints(found, config.feedback, ask, whole_turns=True)).texts, asked


def sibling_of(found, index):
    return next((i for i, one in enumerate(found.trajectories) if i != index and one.success), None)


def said(found, at):
    return found.trajectories[at[0]].turns[at[1]].result.feedback.strip()


def later(found, at):
    return [f"did{at[0]}{number}" for number in range(at[1] + 1, len(found.trajectories[at[0]].turns))]


def has(found, at, part):
    """Whether a part is there for a turn."""
    there = {
        "S": sibling_of(found, at[0]) is not None,
        "F": later(found, at),
        "I": said(found, at),
        "N": True,
    }
    return bool(there[part])


def parts_of(mode):
    """The parts that a mode's name lists, in its order."""
    return [PARTS[name] for name in re.findall("|".join(PARTS), mode)]


def titles_in(text):
    """The parts of a hint, in their order."""
    return sorted(
        (part for part in TITLES if TITLES[part] in text), key=lambda part: text.index(TITLES[part])
    )


def test_the_table_has_every_mode_of_the_authors():
    assert sorted(MODES) == sorted(authors_names()) and len(MODES) == 21


@pytest.mark.parametrize("mode", [name for name in authors_names() if not re.match("anchor|judge", name)])
@settings(max_examples=25)
@given(found=groups())
def test_step_modes_show_what_their_names_say(mode, found):
    texts, asked = gathered(mode, found)
    either = "_or_" in mode or mode == "legacy"
    wanted = ["S", "I"] if mode == "legacy" else parts_of(mode)
    for index, one in enumerate(found.trajectories):
        for number in range(len(one.turns)):
            at = (index, number)
            there = [part for part in wanted if has(found, at, part)]
            shown = there[:1] if either else there if there == wanted else []
            assert titles_in(texts.get(at, "")) == shown
            if "S" in shown:
                assert f"did{sibling_of(found, index)}0" in texts[at]
            if "I" in shown:
                assert said(found, at) in texts[at]
            if "F" in shown:
                assert all(name in texts[at] for name in later(found, at))
            if "N" in shown:
                assert f"seen{index}{number}" in texts[at]
    assert asked == []


@pytest.mark.parametrize("mode", [name for name in authors_names() if name.startswith("judge")])
@settings(max_examples=25)
@given(found=groups())
def test_a_judge_is_asked_about_every_trajectory(mode, found):
    texts, asked = gathered(mode, found)
    assert len(asked) == len(found.trajectories)
    assert {index for index, _ in texts} == set(range(len(asked)))
    for index, question in enumerate(asked):
        shown = mode.endswith("successful_sample") and sibling_of(found, index) is not None
        assert ("A successful attempt at the same task:" in question) == shown
    assert all("The judge's words." in text and SUCCESS_TITLE not in text for text in texts.values())


def tries_of(found, room):
    """By action, who took it in a room, in order of first use."""
    everyone = sorted((n, i) for i, one in enumerate(found.trajectories) for n in range(len(one.turns)))
    tries = {}
    for number, index in everyone:
        one = found.trajectories[index].turns[number]
        if one.observation.text == room and one.action:
            tries.setdefault(one.action, []).append((index, number))
    return tries


def picked(found, tries, part):
    """The texts that a part adds to an action: of its best and worst, or its best success and failure."""
    ended = [found.trajectories[index] for index, _ in tries]
    order = sorted(range(len(tries)), key=lambda k: (ended[k].success, ended[k].reward))
    highest = [
        k
        for k in order
        if (ended[k].success, ended[k].reward) == (ended[order[-1]].success, ended[order[-1]].reward)
    ]
    best, worst = tries[min(highest)], tries[order[0]]
    if part == "I":
        return {said(found, at) for at in (best, worst)} - {""}
    if part == "N":
        return {f"seen{index}{number}" for index, number in (best, worst)}
    chosen = [best] if found.trajectories[best[0]].success else []
    chosen += [] if found.trajectories[worst[0]].success else [worst]
    return {name for at in chosen for name in later(found, at)}


@pytest.mark.parametrize("mode", [name for name in authors_names() if name.startswith("anchor")])
@settings(max_examples=25)
@given(found=groups())
def test_anchors_show_what_was_tried_and_the_sibling_if_there_is_one(mode, found):
    texts, _ = gathered(mode, found)
    wanted = parts_of(mode)
    for index, one in enumerate(found.trajectories):
        for number, own in enumerate(one.turns):
            text, tries = texts.get((index, number), ""), tries_of(found, own.observation.text)
            if mode == "anchor_immediate_feedback":
                lines = [
                    f"- {action}: {said(found, at)}"
                    for action in tries
                    for at in tries[action]
                    if said(found, at)
                ]
                assert text.splitlines() == ([FEEDBACK_TITLE, *dict.fromkeys(lines)] if lines else [])
                continue
            other = sibling_of(found, index) if "S" in wanted else None
            tried, _, success = text.partition(SUCCESS_TITLE)
            assert tried.startswith(ACTIONS_TITLE) == bool(tries)
            blocks = re.split(r"^- ", tried, flags=re.MULTILINE)[1:]
            assert len(blocks) == len(tries)
            for block, (action, taken) in zip(blocks, tries.items(), strict=True):
                ended = [found.trajectories[i] for i, _ in taken]
                won, mean = sum(t.success for t in ended), sum(t.reward for t in ended) / len(taken)
                assert block.startswith(
                    f"{action}: tries {len(taken)}, successes {won}, mean reward {mean:.3g}\n"
                )
                silent = "_or_" in mode and other is not None
                expected = (
                    set() if silent else set().union(*(picked(found, taken, p) for p in wanted if p != "S"))
                )
                assert set(re.findall(r"(?:said|seen|did)\d+", block)) == expected
            assert re.findall(r"did\d+", success) == (
                [] if other is None else [f"did{other}0", *later(found, (other, 0))]
            )
