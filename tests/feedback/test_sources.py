"""Which turns have hints, and what these say: sources, siblings, anchors."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from feedback_toys import (
    DESK,
    FRIDGE,
    OPEN,
    ROOM,
    feedback,
    golden,
    group,
    kitchen,
    seen,
    show,
    trajectory,
    turn,
    written,
)

from hindsight.feedback.combine import combined, lacking
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.sources import IMMEDIATE_TITLE, sibling
from hindsight.feedback.transcript import shortened, transcript


def texts_of(found, **settings):
    return asyncio.run(gather_hints(found, feedback(**settings), show=show, whole_turns=True)).texts


SETTINGS = {
    "immediate": {},
    "next_observation": {"source": "next_observation"},
    "future": {"source": "future"},
    "future_pairs": {"source": "future", "rendering": "pairs"},
    "reference": {"source": "reference"},
    "success_only": {"source": "sibling"},
    "success_or_immediate": {"source": "sibling immediate", "combine": "first"},
    "success_and_immediate": {"source": "sibling immediate"},
    "success_and_next_observation": {"source": "sibling next_observation"},
    "success_and_future_pairs": {"source": "sibling future", "rendering": "pairs"},
    "success_and_future_and_immediate": {"source": "sibling future immediate"},
    "anchor_immediate": {"granularity": "anchor"},
    "anchor_next_observation": {"source": "next_observation", "granularity": "anchor"},
    "anchor_future": {"source": "future", "granularity": "anchor"},
    "anchor_future_and_immediate": {"source": "immediate future", "granularity": "anchor"},
    "anchor_success_or_immediate": {
        "source": "sibling immediate",
        "combine": "first",
        "granularity": "anchor",
    },
    "anchor_success_and_next_observation": {
        "source": "sibling next_observation",
        "granularity": "anchor",
    },
    "anchor_success_and_future_and_immediate": {
        "source": "sibling future immediate",
        "granularity": "anchor",
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_read_as_the_golden_file(name):
    assert written(texts_of(kitchen(), **SETTINGS[name])) == golden(name)


def test_each_answered_turn_gets_its_own_feedback():
    found = group(
        trajectory(turn(ROOM, "look", "You open it."), turn(ROOM, "look", "Locked.")),
        trajectory(turn(ROOM, "look", "Dark.")),
    )
    assert texts_of(found) == {
        (0, 0): f"{IMMEDIATE_TITLE}\nYou open it.",
        (0, 1): f"{IMMEDIATE_TITLE}\nLocked.",
        (1, 0): f"{IMMEDIATE_TITLE}\nDark.",
    }


@pytest.mark.parametrize("silent", ["", "  \n "])
@pytest.mark.parametrize("granularity", ["step", "anchor"])
def test_no_feedback_no_context(silent, granularity):
    found = group(trajectory(turn(ROOM, "look", silent), turn(DESK, "look", "ok")))
    assert texts_of(found, granularity=granularity).keys() == {(0, 1)}


def test_no_source_no_texts():
    assert texts_of(kitchen(), source="") == {}


def test_the_last_turn_has_no_future():
    texts = texts_of(kitchen(), source="future")
    assert texts.keys() == {(i, n) for i in range(3) for n in range(2)}


def test_a_task_without_a_reference_has_no_texts():
    assert texts_of(replace(kitchen(), reference=()), source="reference") == {}


def test_the_sibling_is_the_first_other_success():
    won = [trajectory(turn(ROOM, f"win {n}", "You have won.", reward=1.0)) for n in range(2)]
    lost = trajectory(turn(ROOM, "lose", "You have lost."))
    found = group(lost, won[0], won[1])
    assert [sibling(found, index) for index in range(3)] == [won[0], won[1], won[0]]
    assert [sibling(group(lost, won[0]), index) for index in range(2)] == [won[0], None]


def test_first_takes_the_source_where_no_sibling_succeeded_and_all_needs_both():
    found = kitchen()
    immediate = texts_of(found)
    either, both, only = (
        texts_of(found, source="sibling immediate", combine="first"),
        texts_of(found, source="sibling immediate"),
        texts_of(found, source="sibling"),
    )
    assert {key: text for key, text in either.items() if key[0] == 1} == {
        key: text for key, text in immediate.items() if key[0] == 1
    }
    assert {key for key in either if key[0] != 1} == set(only) == set(both)  # 1 is the only success
    assert all(both[key] == f"{only[key]}\n\n{immediate[key]}" for key in both)
    silent = group(trajectory(turn(ROOM, "look", "")), found.trajectories[1])
    assert texts_of(silent, source="sibling immediate") == {}
    assert texts_of(silent, source="sibling immediate", combine="first").keys() == {
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
    }


def test_texts_are_combined_in_the_order_of_their_sources():
    one, other = {(0, 0): "a", (0, 1): "a"}, {(0, 1): "b", (2, 2): "b"}
    assert combined(kitchen(), [one, other], "all", range(3)) == {(0, 1): "a\n\nb"}
    assert combined(kitchen(), [other, one], "first", range(3)) == {(0, 0): "a", (0, 1): "b", (2, 2): "b"}
    assert combined(kitchen(), [], "all", range(3)) == {}


def test_a_judge_is_asked_only_where_its_answer_is_used():
    found = {(1, turn): "text" for turn in range(3)} | {(2, 0): "text"}
    assert lacking(kitchen(), [None], 0, "all", range(3)) == [0, 1, 2]
    assert lacking(kitchen(), [None, found], 0, "all", range(3)) == [1, 2]
    assert lacking(kitchen(), [found, None], 1, "first", range(3)) == [0, 2]
    assert lacking(kitchen(), [None, found], 0, "first", range(3)) == [0, 1, 2]


def test_turns_of_an_anchor_share_one_text():
    texts = texts_of(kitchen(), granularity="anchor", source="next_observation")
    rooms = {texts[index, 0] for index in range(3)}
    fridges = {texts[1, 1], texts[2, 1], texts[2, 2]}
    assert len(rooms) == len(fridges) == 1 and rooms != fridges
    # The fridge: opened by 1 (success, 1) and 2 (failure, 0.25); the mug taken at once by 2.
    text = fridges.pop()
    assert "- open fridge 1: tries 2, successes 1, mean reward 0.625\n" in text
    assert "  best outcome: success, reward 1; worst outcome: failure, reward 0.25\n" in text
    assert "- take mug 1: tries 1, successes 0, mean reward 0.25\n" in text


def test_feedback_that_differs_for_one_action_is_all_listed():
    found = group(
        *(trajectory(turn(ROOM, "push", said)) for said in ("It moves.", "It sticks.", "It moves.", "")),
        trajectory(turn(ROOM, "pull", "It moves.")),
    )
    text = texts_of(found, granularity="anchor")[3, 0]  # the silent one shares it
    assert text.splitlines()[1:] == ["- push: It moves.", "- push: It sticks.", "- pull: It moves."]


def test_similar_states_are_one_anchor_below_a_similarity_of_one():
    near = "You arrive at fridge 1. The fridge 1 is closed!"
    found = group(
        trajectory(turn(FRIDGE, "open fridge 1", OPEN)), trajectory(turn(near, "take mug 1", "No."))
    )
    apart = texts_of(found, granularity="anchor")
    joined = texts_of(found, granularity="anchor", similarity=0.95)
    assert apart[0, 0] != apart[1, 0] and joined[0, 0] == joined[1, 0]


def test_reasoning_is_not_shown():
    turns = kitchen().trajectories[0].turns
    cut = replace(turns[0], response="<think>I was cut off")
    assert transcript([turns[0], cut], "responses") == "Step 1: <action>go to desk 1</action>\nStep 2: (none)"


def test_texts_are_shortened_to_equal_shares_only_where_they_must_be():
    assert shortened(["a" * 60, "b" * 40], 100) == ["a" * 60, "b" * 40]
    cut = shortened(["a" * 200, "b" * 10, "c" * 200], 90)
    assert [len(text) for text in cut] == [30, 10, 30]
    assert cut[0] == "a" * 14 + " … " + "a" * 13


def test_states_are_compared_by_their_keys():
    same = group(
        trajectory(replace(turn(ROOM, "look", "a"), observation=seen("one", key="k"))),
        trajectory(replace(turn(ROOM, "look", "b"), observation=seen("two", key="k"))),
    )
    texts = texts_of(same, granularity="anchor")
    assert texts[0, 0] == texts[1, 0]
