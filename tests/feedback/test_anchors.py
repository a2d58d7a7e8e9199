"""Anchors by hand, against a slow second version, and what must hold for every group."""

from __future__ import annotations

import time
from difflib import SequenceMatcher

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.anchors import LONGEST, AnchorError, anchors
from hindsight.rollout.types import Group, Trajectory, Turn

TASK = TaskSpec("t", "toy", "open", "train")
NOTHING = StepResult(Observation(""), "", 0.0, False, False, False)
keys_of_groups = st.lists(st.lists(st.text("ab", min_size=1, max_size=6), max_size=6), max_size=4)


def group(*keys):
    """One trajectory per list of state keys, a turn each."""
    made = []
    for row in keys:
        seen = [Observation("", state_key=key) for key in row]
        turns = tuple(Turn(0, 1, 2, None, at, "", None, False, NOTHING) for at in seen)
        made.append(Trajectory(TASK, (), turns, False, 0.0, "truncated"))
    return Group(0, TASK, tuple(made))


def naive(keys, similarity):
    """First fit over all turns, every comparison made in full."""
    found = []
    longest = max((len(row) for row in keys), default=0)
    for number in range(longest):
        for index, row in enumerate(keys):
            if number >= len(row):
                continue
            for rep, members in found:
                if SequenceMatcher(None, row[number], rep, autojunk=False).ratio() >= similarity:
                    members.append((index, number))
                    break
            else:
                found.append((row[number], [(index, number)]))
    return [members for _, members in found]


def test_equal_states_by_hand():
    # the kitchen is revisited in the first trajectory; the hall is seen by both, at different turns
    made = anchors(group(["start", "kitchen", "kitchen", "hall"], ["start", "hall"]))
    assert made == [[(0, 0), (1, 0)], [(0, 1), (0, 2)], [(1, 1), (0, 3)]]


def test_similar_states_join_the_first_that_fits():
    # 2·9/20 = 0.9 between neighbors, 0.8 between the outer two: whether they meet depends on the order
    near, middle, far = "aaaaaaaaaa", "aaaaaaaaab", "aaaaaaaabb"
    assert anchors(group([near, middle, far]), 0.9) == [[(0, 0), (0, 1)], [(0, 2)]]
    assert anchors(group([middle, near, far]), 0.9) == [[(0, 0), (0, 1), (0, 2)]]
    assert anchors(group([near, middle, far]), 0.95) == [[(0, 0)], [(0, 1)], [(0, 2)]]


def test_long_texts_that_differ_in_a_word_are_similar():
    words = "You are in the middle of a room. Looking around you, you see a drawer and a shelf. " * 8
    assert anchors(group([words + "A mug.", words + "A cup."]), 0.95) == [[(0, 0), (0, 1)]]


def test_long_texts_are_similar_if_they_differ_in_one_place():
    page = "A page of many lines.\n" * 200
    assert len(page) > LONGEST
    seen = [page + "1 item." + page, page + "23 items." + page, "23 items." + page * 2, page]
    assert anchors(group(seen), 0.95) == [[(0, 0), (0, 1)], [(0, 2)], [(0, 3)]]


@pytest.mark.parametrize("piece", ["a", "ab", "word "])
def test_hostile_states_take_linear_time(piece):
    """What a model wrote may be part of a state. difflib alone would take minutes to hours."""
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    assert anchors(group([text + "x", "y" + text, text + "z"]), 0.95) == [[(0, 0), (0, 2)], [(0, 1)]]
    short = piece * (LONGEST // len(piece) - 1)
    anchors(group([short, short[1:] + "x", "y" + short[:-1]]), 0.95)
    assert time.process_time() - began < 6.0


def test_an_observation_without_a_state_is_refused():
    with pytest.raises(AnchorError, match=r"trajectory 1, turn 0 of task t.*no state_key"):
        anchors(group(["here"], [""]))


@given(keys_of_groups, st.sampled_from([1.0, 0.95, 0.8, 0.5]))
def test_equals_the_slow_version(keys, similarity):
    assert anchors(group(*keys), similarity) == naive(keys, similarity)


@given(keys_of_groups)
def test_each_turn_is_in_exactly_one_anchor_of_its_own_state(keys):
    made = anchors(group(*keys))
    members = [member for anchor in made for member in anchor]
    assert sorted(members) == [(i, t) for i, row in enumerate(keys) for t in range(len(row))]
    states = [{keys[i][t] for i, t in anchor} for anchor in made]
    assert all(len(state) == 1 for state in states)
    assert len(made) == len({key for row in keys for key in row})
