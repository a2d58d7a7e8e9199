"""Our verdicts and results against `bfcl-eval`'s own checker, which evaluates calls on global instances."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
    multi_turn_checker,
    multi_turn_irrelevance_checker,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.configs.schema import Env
from hindsight.envs.bfcl.data import KINDS, Entry, _lines, entries
from hindsight.envs.bfcl.env import BfclFamily
from hindsight.envs.tool_calls import Call, write_calls

Turns = list[list[list[Call]]]  # per turn, per step

ENV = BfclFamily(Env(name="bfcl", max_turns=1000), Path("unused")).make()


@cache
def shipped() -> dict[str, tuple[dict, list[list[str]]]]:
    """Every entry and its solution as the package ships them."""
    found = {}
    for kind in KINDS:
        answers = {
            item["id"]: item["ground_truth"]
            for item in _lines(f"possible_answer/BFCL_v4_multi_turn_{kind}.json")
        }
        for item in _lines(f"BFCL_v4_multi_turn_{kind}.json"):
            found[item["id"]] = item, answers[item["id"]]
    return found


def written(call: Call) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def official(entry: Entry, turns: Turns) -> list[tuple[str, str]]:
    """(error type, message) of upstream's two checks, the first deciding."""
    item, gold = shipped()[entry.id]
    texts = [[[written(call) for call in step] for step in turn] for turn in turns]
    before = set(vars(multi_turn_utils))
    try:
        verdicts = [
            multi_turn_checker(texts, gold, item, f"multi_turn_{entry.kind}", f"run_{uuid4().hex}"),
            multi_turn_irrelevance_checker(texts, gold),
        ]
    finally:
        for name in set(vars(multi_turn_utils)) - before:
            delattr(multi_turn_utils, name)
    return [(verdict["error_type"], verdict["error_message"]) for verdict in verdicts if not verdict["valid"]]


def ours(entry: Entry, turns: Turns) -> list[tuple[str, str]]:
    ENV.reset(entry.task)
    for turn in turns:
        for step in turn:
            assert not ENV.step(write_calls(step)).terminated
        result = ENV.step("Next.")
    assert result.terminated and result.success == (result.reward == 1.0) == (not result.info["errors"])
    return [(error["error_type"], error["error_message"]) for error in result.info["errors"]]


def same(entry: Entry, turns: Turns) -> list[str]:
    """The error types, after both have agreed on them and on upstream's messages."""
    theirs, mine = official(entry, turns), ours(entry, turns)
    empty = "multi_turn:empty_turn_model_response"  # the one message that is worded here
    assert [(kind, kind == empty or text) for kind, text in theirs] == [
        (kind, kind == empty or text) for kind, text in mine
    ]
    return [kind for kind, _ in mine]


def solution(entry: Entry) -> Turns:
    """Call by call; two entries have a turn whose calls would be too many steps."""
    return [[[call] for call in turn] if len(turn) < 15 else [list(turn)] for turn in entry.gold]


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_are_valid_and_without_their_first_turn_as_upstream_says(kind):
    found = Counter()
    for entry in (entry for entry in entries().values() if entry.kind == kind):
        turns = [[list(turn)] if turn else [] for turn in entry.gold]
        assert same(entry, turns) == []
        found.update(same(entry, [[], *turns[1:]]) or ["valid"])
    idle = {"miss_func": 94, "miss_param": 81}.get(kind, 0)  # their first turn has no call
    assert found == Counter({"multi_turn:empty_turn_model_response": 200 - idle, "valid": idle})


def pool(entry: Entry) -> list[Call]:
    """Calls that solutions make of the backends this entry has."""
    return [
        call
        for other in entries().values()
        if other.kind == entry.kind and set(other.classes) <= set(entry.classes)
        for turn in other.gold
        for call in turn
    ]


def spoil(entry: Entry, turns: Turns, rng: random.Random) -> None:
    """One change: a call lost, repeated, altered, swapped, from elsewhere, unknown, or a step joined."""
    calls = pool(entry)
    turn = rng.choice([turn for turn in turns if turn] or turns)
    place = rng.randrange(len(turn)) if turn else 0
    match rng.randrange(7):
        case 0 if turn:
            del turn[place]
        case 1 if turn:
            turn.insert(place, list(turn[place]))
        case 2 if turn:
            call = turn[place][0]
            others = [other for other in calls if other.name == call.name] or [call]
            turn[place] = [Call(call.name, call.arguments | rng.choice(others).arguments)]
        case 3 if turn:
            rng.shuffle(turn)
        case 4:
            rng.choice(turns).insert(0, [rng.choice(calls)])
        case 5:
            turn.insert(place, [Call("fly", {"to": "the moon"}), Call("cd", {}), Call("cd", {"folder": 7})])
        case _:
            turn[:] = [[call for step in turn for call in step]] if turn else []


@given(st.sampled_from(sorted(shipped())), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_spoilt_solutions_are_judged_as_upstream_does(name, changes, rng):
    entry = entries()[name]
    turns = solution(entry)
    for _ in range(changes):
        spoil(entry, turns, rng)
    same(entry, turns)


def test_random_calls_are_judged_and_answered_as_upstream_does():
    rng = random.Random(0)
    verdicts = Counter()
    for entry in rng.sample(list(entries().values()), 120):
        calls = pool(entry)
        turns = [[[rng.choice(calls)] for _ in range(rng.randrange(4))] for _ in entry.gold]
        verdicts.update(same(entry, turns))
        ENV.reset(entry.task)
        played = [call for turn in turns for step in turn for call in step]
        before = set(vars(multi_turn_utils))
        texts, _ = multi_turn_utils.execute_multi_turn_func_call(
            [written(call) for call in played],
            entry.config,
            entry.classes,
            f"run_{uuid4().hex}",
            entry.id,
            long_context=entry.kind == "long_context",
        )
        for made in set(vars(multi_turn_utils)) - before:
            delattr(multi_turn_utils, made)
        assert [ENV._backends.call(call) for call in played] == texts
    assert len(verdicts) >= 3  # not one kind of failure only
