"""Which trajectories can be asked about while others are played: those that nothing later changes."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pytest
from feedback_toys import ROOM, TASK, trajectory, turn
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs.method import Feedback
from hindsight.configs.registry import FEEDBACK_SOURCES
from hindsight.feedback.needs import Episodes, Needs, hints_need, ready_parts
from hindsight.feedback.source import FeedbackSource
from hindsight.feedback.sources import sibling
from hindsight.rollout.types import Failure, Group

WON = [trajectory(turn(ROOM, "look", "", reward=1.0)) for _ in range(5)]  # not the same object twice
LOST = trajectory(turn(ROOM, "look", ""))
BROKEN = Failure("engine", "gone", "t")
WAYS = st.lists(st.sampled_from(["won", "lost", "broken", "played"]), min_size=1, max_size=5)


def episodes(ways: list[str]) -> Episodes:
    outcomes = {"lost": LOST, "broken": BROKEN, "played": None}
    return [WON[index] if way == "won" else outcomes[way] for index, way in enumerate(ways)]


def possible_siblings(ways: list[str], index: int) -> set[int | None]:
    """Whom the trajectory may have as its sibling, whatever comes of the others."""
    found: set[int | None] = set()
    for ending in product(*(["won", "lost", "broken"] if way == "played" else [way] for way in ways)):
        over = episodes(list(ending))
        kept = [at for at, one in enumerate(over) if not isinstance(one, Failure)]
        group = Group(0, TASK, tuple(over[at] for at in kept))  # type: ignore[misc]
        other = sibling(group, kept.index(index))
        found.add(None if other is None else next(at for at, one in enumerate(WON) if one is other))
    return found


@given(WAYS)
def test_a_sibling_is_known_when_nothing_can_change_it(ways: list[str]) -> None:
    played = [index for index, way in enumerate(ways) if way in ("won", "lost")]
    known = [(index,) for index in played if len(possible_siblings(ways, index)) == 1]
    assert ready_parts(episodes(ways), "sibling") == known


@given(WAYS, st.sampled_from(get_args(Needs)), st.randoms())
def test_parts_stay_and_in_the_end_everyone_is_in_one(ways: list[str], needs: Needs, random: object) -> None:
    over = episodes(["lost" if way == "played" else way for way in ways])
    order = list(range(len(over)))
    random.shuffle(order)  # type: ignore[attr-defined]
    now: list[object] = [None] * len(over)
    found: set[tuple[int, ...]] = set()
    for index in order:
        assert index not in [one for part in found for one in part]  # it is still played
        now[index] = over[index]
        later = set(ready_parts(now, needs))  # type: ignore[arg-type]
        assert found <= later
        found = later
    everyone = [index for index, one in enumerate(over) if one is not BROKEN]
    assert sorted(index for part in found for index in part) == everyone
    assert len(found) == (1 if needs == "group" and everyone else len(everyone))


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({"sources": ["immediate"]}, "trajectory"),
        ({"sources": ["next_observation"]}, "trajectory"),
        ({"sources": ["future"]}, "trajectory"),
        ({"sources": ["reference"]}, "trajectory"),
        ({"sources": ["judge"]}, "trajectory"),
        ({"sources": ["reflect"]}, "trajectory"),
        ({"sources": ["target"]}, "trajectory"),
        ({"sources": ["immediate"], "granularity": "anchor"}, "group"),
        ({"sources": ["sibling", "immediate"], "combine": "first"}, "sibling"),
        ({"sources": ["sibling", "judge"]}, "sibling"),
        ({"sources": ["sibling"]}, "sibling"),
    ],
)
def test_what_hints_need(settings: dict[str, Any], needs: Needs) -> None:
    sources: list[type[FeedbackSource]] = [FEEDBACK_SOURCES.find(name) for name in settings["sources"]]
    assert hints_need([source.needs for source in sources], Feedback(**settings)) == needs


def test_a_source_that_does_not_say_waits_for_the_group() -> None:
    class Own(FeedbackSource):
        pass

    assert hints_need([Own.needs], Feedback(sources=["own.py"])) == "group"
    assert hints_need(["sibling", Own.needs], Feedback(sources=["sibling", "own.py"])) == "group"
    assert hints_need([], Feedback()) == "trajectory"
