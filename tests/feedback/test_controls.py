"""Control arms keep the number and the form of hints, and take away what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from feedback_toys import kitchen

from hindsight.configs.load import load_config
from hindsight.feedback.controls import Control, at_random_turns, of_other_task, shuffled, without_hindsight

TEXTS = {(0, 0): "a", (0, 2): "b", (2, 1): "c"}


def test_hints_of_another_task_take_the_places_of_ones_own():
    assert of_other_task(TEXTS, ["x", "y"]) == {(0, 0): "x", (0, 2): "y", (2, 1): "x"}
    assert of_other_task(TEXTS, []) == {} and of_other_task({}, ["x"]) == {}


def test_a_hint_that_says_the_same_is_no_hint_of_another_task():
    assert of_other_task(TEXTS, ["a", "x"]) == {(0, 0): "x", (0, 2): "a", (2, 1): "x"}
    assert of_other_task({(0, 0): "a", (0, 1): "b"}, ["a"]) == {(0, 1): "a"}


def test_no_hindsight_keeps_the_turns():
    assert without_hindsight(TEXTS) == {(0, 0): "", (0, 2): "", (2, 1): ""}


def test_hints_move_to_random_turns_of_their_trajectory():
    drawn = [at_random_turns(TEXTS, kitchen(), True, seed) for seed in range(40)]
    for moved in drawn:
        assert sorted(moved.values()) == ["a", "b", "c"] and [index for index, _ in moved] == [0, 0, 2]
        assert list(moved) == sorted(moved) and moved[max(moved)] == "c"
    places = {(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)}
    assert {at for moved in drawn for at in moved} == places
    assert drawn[0] == at_random_turns(TEXTS, kitchen(), True, 0)
    parsed = [at_random_turns(TEXTS, kitchen(), False, seed) for seed in range(40)]
    assert {at for moved in parsed for at in moved} == places - {(0, 1)}


def test_hints_of_all_turns_change_places():
    texts = {(0, 0): "a", (0, 1): "b", (0, 2): "c"}
    drawn = [arm("random_turns", seed).hints(kitchen(), texts) for seed in range(40)]
    assert all(moved.keys() == texts.keys() for moved in drawn)
    assert {"".join(moved.values()) for moved in drawn} == {"abc", "acb", "bac", "bca", "cab", "cba"}


def test_shuffling_keeps_the_log_ratios_of_a_turn():
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=8).astype(np.float32), rng.normal(size=8).astype(np.float32)
    made = shuffled(teacher, student, rng)
    assert made.dtype == np.float32 and not np.allclose(made, teacher)
    assert sorted(made - student) == pytest.approx(sorted(teacher - student), abs=1e-6)


def arm(kind, seed=0):
    chosen = [f"seed={seed}", "signal.tokens=response", f"feedback.control={kind}"]
    return Control(load_config(None, ["method=serl", *chosen]))


def test_each_group_is_shown_the_hints_of_the_task_before_it():
    control, first = arm("other_task"), kitchen()
    second, third = (replace(first, task=replace(first.task, id=name)) for name in ("b", "c"))
    assert control.hints(first, {(0, 0): "a"}) == {}  # there is no other task yet
    assert control.hints(first, {(0, 0): "a", (0, 1): "A"}) == {}
    assert control.hints(second, {(0, 0): "b", (1, 0): "B", (2, 0): "β"}) == {
        (0, 0): "a",
        (1, 0): "A",
        (2, 0): "a",
    }
    assert control.hints(third, {}) == {}
    assert control.hints(third, {(0, 0): "c"}) == {(0, 0): "b"}
    assert control.hints(third, {(0, 0): "c"}) == {(0, 0): "b"}


def test_without_a_control_arm_everything_stays():
    teacher, student = [np.ones(2, np.float32)], [np.zeros(2, np.float32)]
    assert arm("none").hints(kitchen(), TEXTS) is TEXTS
    assert arm("none").logprobs(kitchen(), teacher, student)[0] is teacher[0]
    mixed = [np.arange(9, dtype=np.float32)]
    assert list(arm("shuffled").logprobs(kitchen(), mixed, [np.zeros(9, np.float32)])[0]) != list(mixed[0])
