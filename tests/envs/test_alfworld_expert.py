"""The searching player on texts made up here."""

from random import Random

import pytest
from alfworld.gen.goal_library import gdict
from hypothesis import given
from hypothesis import strategies as st

from hindsight.envs.alfworld.expert import SearchExpert, Wish
from hindsight.envs.alfworld.games import KINDS, LIGHT, TREATMENTS, TWO
from hindsight.envs.base import EnvError, Observation

ROOM = "You are in the middle of a room. Around you, you see a drawer 2, a drawer 1, and a shelf 1."


def room(task, *actions):
    return Observation(f"-= Welcome to TextWorld, ALFRED! =-\n\n{ROOM}\n\nYour task is to: {task}.", actions)


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_every_template_of_upstream_is_understood(kind, data):
    template = data.draw(st.sampled_from(gdict[kind]["templates"]))
    task = template.format(obj="mug", recep="shelf", toggle="desklamp", mrecep="")
    wish = Wish.read(room(task).text)
    assert wish == Wish(
        target="mug",
        parent="" if kind == LIGHT else "shelf",
        lamp="desklamp" if kind == LIGHT else "",
        verb=TREATMENTS[kind][0] if kind in TREATMENTS else None,
        two=kind == TWO,
    )


def test_a_task_in_other_words_is_refused():
    with pytest.raises(EnvError, match="wash the dishes"):
        SearchExpert(room("wash the dishes"))


def test_surfaces_are_searched_before_drawers_and_drawers_are_opened():
    first = room("put a pen in shelf", "go to drawer 1", "go to drawer 2", "go to shelf 1")
    expert = SearchExpert(first)
    assert expert.act(first) == "go to shelf 1"
    expert.see("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see nothing.")
    assert expert.act(first) == "go to drawer 2"
    expert.see("go to drawer 2", "You arrive at drawer 2. The drawer 2 is closed.")
    at_drawer = Observation("", ("go to drawer 1", "go to shelf 1", "open drawer 2"))
    assert expert.act(at_drawer) == "open drawer 2"


def test_the_order_of_the_search_is_drawn():
    first = room("put a pen in shelf")
    orders = {tuple(SearchExpert(first, Random(seed)).receptacles) for seed in range(60)}
    assert len(orders) == 6 and tuple(SearchExpert(first).receptacles) in orders


def test_both_verbs_of_placing_are_spoken():
    for verb, link in (("move", "to"), ("put", "in/on")):
        expert = SearchExpert(room("put a pen in shelf"))
        expert.see("take pen 1 from drawer 1", "You pick up the pen 1 from the drawer 1.")
        action = f"{verb} pen 1 {link} shelf 1"
        assert expert.act(Observation("", ("look", action))) == action


def test_what_noise_picked_up_is_put_back():
    expert = SearchExpert(room("put a pen in shelf"))
    expert.see("take mug 1 from drawer 1", "You pick up the mug 1 from the drawer 1.")
    assert (
        expert.act(Observation("", ("go to shelf 1", "move mug 1 to drawer 1"))) == "move mug 1 to drawer 1"
    )
    assert expert.act(Observation("", ("go to drawer 1", "go to drawer 2"))) == "go to drawer 1"


def test_a_place_used_from_where_one_stands_is_examined():
    first = room("put a pen in drawer", "go to drawer 1", "go to drawer 2", "examine shelf 1")
    assert SearchExpert(first).act(first) == "examine shelf 1"
