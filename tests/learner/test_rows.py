"""Rows: which tokens bear loss, what they weigh, and where the teacher's scores land."""

from __future__ import annotations

import numpy as np
import pytest
from learner_toys import TASK, group, sequence, trajectory, turn

from hindsight.configs.schema import Credit
from hindsight.learner.credit import advantages
from hindsight.learner.rows import make_rows
from hindsight.rollout.types import Trajectory

WON = trajectory([turn(0, 3, 7, (4, 6)), turn(0, 10, 13, (11, 13))], True)
LOST = trajectory([turn(0, 3, 8, (5, 7)), turn(0, 12, 15, None, None, False)], False)


def test_every_sampled_token_bears_its_turns_advantage():
    held = group(WON, LOST, ordinal=5)
    per_turn = advantages(held, Credit())
    rows = make_rows([held], {}, Credit())
    assert [row.positions.tolist() for row in rows] == [[3, 4, 5, 6, 10, 11, 12], [3, 4, 5, 6, 7, 12, 13, 14]]
    for row, values, lengths in zip(rows, per_turn, ([4, 3], [5, 3]), strict=True):
        np.testing.assert_array_equal(row.advantages, np.repeat(values, lengths))
        np.testing.assert_allclose(row.rollout_logprobs, -row.positions / 10, rtol=1e-6)
        assert np.isnan(row.teacher_logprobs).all()


def test_scores_land_on_the_action_and_nowhere_else():
    scores = {(5, 0, 1): np.array([-0.5, -0.25]), (5, 1, 0): np.array([-1.0, -2.0]), (4, 0, 0): np.zeros(9)}
    won, lost = make_rows([group(WON, LOST, ordinal=5)], scores, Credit())
    at = dict(zip(won.positions.tolist(), won.teacher_logprobs.tolist(), strict=True))
    assert {place: value for place, value in at.items() if not np.isnan(value)} == {11: -0.5, 12: -0.25}
    at = dict(zip(lost.positions.tolist(), lost.teacher_logprobs.tolist(), strict=True))
    assert {place: value for place, value in at.items() if not np.isnan(value)} == {5: -1.0, 6: -2.0}


def test_an_action_that_parsed_but_was_not_admissible_is_scored_too():
    refused = trajectory([turn(0, 3, 7, (4, 6), valid=False)], False)
    row = make_rows([group(WON, refused)], {(0, 1, 0): np.array([-1.0, -2.0])}, Credit())[1]
    np.testing.assert_array_equal(row.teacher_logprobs, np.float32([np.nan, -1.0, -2.0, np.nan]))


def test_scores_of_whole_responses_land_on_every_sampled_token():
    scores = {(0, 0, 1): np.array([-1.0, -2.0, -3.0]), (0, 1, 1): np.array([-4.0, -5.0, -6.0])}
    won, lost = make_rows([group(WON, LOST)], scores, Credit(), "response")
    nan = np.nan
    np.testing.assert_array_equal(won.teacher_logprobs, np.float32([nan] * 4 + [-1.0, -2.0, -3.0]))
    np.testing.assert_array_equal(lost.teacher_logprobs, np.float32([nan] * 5 + [-4.0, -5.0, -6.0]))


def test_a_reference_is_on_every_sampled_token():
    lengths = {(0, 0, 0): 4, (0, 0, 1): 3, (0, 1, 0): 5, (0, 1, 1): 3}
    scores = {key: -np.arange(1.0, n + 1) for key, n in lengths.items()}
    won, lost = make_rows([group(WON, LOST)], {}, Credit(), reference=scores)
    assert won.reference_logprobs.tolist() == [-1, -2, -3, -4, -1, -2, -3]
    assert lost.reference_logprobs.tolist() == [-1, -2, -3, -4, -5, -1, -2, -3]
    assert make_rows([group(WON, LOST)], {}, Credit())[0].reference_logprobs is None


def test_one_row_for_each_sequence():
    turns = [turn(0, 3, 5, (3, 4)), turn(1, 6, 9, (7, 9))]
    sequences = (sequence(6, [(3, 5)]), sequence(9, [(6, 9)]), sequence(4, []))
    windows = Trajectory(TASK, sequences, tuple(turns), True, 1.0, "terminated")
    rows = make_rows([group(windows, LOST)], {(0, 0, 1): np.array([-3.0, -4.0])}, Credit())
    assert [row.positions.tolist() for row in rows[:2]] == [[3, 4], [6, 7, 8]]
    np.testing.assert_array_equal(rows[1].teacher_logprobs, np.float32([np.nan, -3.0, -4.0]))
    assert len(rows) == 3  # a sequence without sampled tokens gives none


def test_a_group_that_says_nothing_gives_no_rows():
    assert make_rows([group(WON, WON), group(WON)], {}, Credit()) == []


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({(0, 0, 0): np.zeros(3)}, "3 scores for a span of 2"),
        ({(0, 1, 1): np.zeros(3)}, "no action"),
    ],
)
def test_a_score_that_does_not_fit_is_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        make_rows([group(WON, LOST)], scores, Credit())


def test_a_sampled_token_without_a_log_prob_is_refused():
    broken = Trajectory(TASK, (sequence(20, [(3, 6)]),), WON.turns, True, 1.0, "terminated")
    with pytest.raises(ValueError, match="no rollout log-prob"):
        make_rows([group(broken, LOST)], {}, Credit())
