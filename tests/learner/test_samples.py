"""Samples: which tokens they hold, where columns are written, and what a loss sees of them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from learner_toys import TASK, group, sequence, trajectory, turn

from hindsight.configs.method import Credit
from hindsight.learner.credit import advantages, assign
from hindsight.learner.samples import COLUMNS, TrainingSample, to_samples
from hindsight.rollout.types import Failure, Group, Span, Trajectory
from hindsight.teacher.contexts import ScoreRequest, plain_requests

WON = trajectory([turn(0, 3, 7, (4, 6)), turn(0, 10, 13, (11, 13))], True)
LOST = trajectory([turn(0, 3, 8, (5, 7)), turn(0, 12, 15, None, None, False)], False)
NAN = np.nan


def request(trajectory, turn):
    """Of a turn; what the teacher would read does not matter here."""
    return ScoreRequest(trajectory, turn, 0, 0, np.zeros(0, np.int32), Span(0, 0))


def scored(held, scores, tokens="action"):
    """The samples of a group with the teacher's `scores`, by (trajectory, turn)."""
    made = to_samples(held)
    found = [made.find(request(*at), tokens) for at in scores]
    made.put("teacher_logprobs", found, [np.array(values, np.float32) for values in scores.values()])
    return made.samples


def test_every_sampled_token_is_in_a_sample_and_has_its_turns_advantage():
    made = to_samples(group(WON, LOST))
    assert [one.samples for one in made.trajectories] == [[sample] for sample in made.samples]
    won, lost = made.samples
    assert won.positions.tolist() == [3, 4, 5, 6, 10, 11, 12]
    assert lost.positions.tolist() == [3, 4, 5, 6, 7, 12, 13, 14]
    assert won.turns.tolist() == [0] * 4 + [1] * 3 and lost.turns.tolist() == [0] * 5 + [1] * 3
    assign(made, Credit())
    for sample, turns in zip(made.samples, advantages(made.group, Credit()), strict=True):
        np.testing.assert_array_equal(sample.advantages, np.concatenate(turns))
        np.testing.assert_allclose(sample.rollout_logprobs, -sample.positions / 10, rtol=1e-6)
        np.testing.assert_array_equal(sample.versions, sample.positions)
        assert sample.ids.dtype == sample.positions.dtype == sample.turns.dtype == np.int32
        assert sample.advantages.dtype == sample.rollout_logprobs.dtype == np.float32
        assert sample.teacher_logprobs is None and sample.reference_logprobs is None


def test_scores_land_on_the_action_and_nowhere_else():
    won, lost = scored(group(WON, LOST), {(0, 1): [-0.5, -0.25], (1, 0): [-1.0, -2.0]})
    at = dict(zip(won.positions.tolist(), won.teacher_logprobs.tolist(), strict=True))
    assert {place: value for place, value in at.items() if not np.isnan(value)} == {11: -0.5, 12: -0.25}
    at = dict(zip(lost.positions.tolist(), lost.teacher_logprobs.tolist(), strict=True))
    assert {place: value for place, value in at.items() if not np.isnan(value)} == {5: -1.0, 6: -2.0}


def test_an_action_that_parsed_but_was_not_admissible_is_scored_too():
    refused = trajectory([turn(0, 3, 7, (4, 6), valid=False)], False)
    sample = scored(group(WON, refused), {(1, 0): [-1.0, -2.0]})[1]
    np.testing.assert_array_equal(sample.teacher_logprobs, np.float32([NAN, -1.0, -2.0, NAN]))


def test_scores_of_whole_responses_land_on_every_sampled_token():
    scores = {(0, 1): [-1.0, -2.0, -3.0], (1, 1): [-4.0, -5.0, -6.0]}
    won, lost = scored(group(WON, LOST), scores, "response")
    np.testing.assert_array_equal(won.teacher_logprobs, np.float32([NAN] * 4 + [-1.0, -2.0, -3.0]))
    np.testing.assert_array_equal(lost.teacher_logprobs, np.float32([NAN] * 5 + [-4.0, -5.0, -6.0]))


def test_a_reference_is_on_every_sampled_token():
    made = to_samples(group(WON, LOST))
    requests = plain_requests(made.group, range(2))
    found = [made.find(one, "response") for one in requests]
    made.put("reference_logprobs", found, [-np.arange(1.0, len(one.span) + 1) for one in requests])
    won, lost = made.samples
    assert won.reference_logprobs.tolist() == [-1, -2, -3, -4, -1, -2, -3]
    assert lost.reference_logprobs.tolist() == [-1, -2, -3, -4, -5, -1, -2, -3]


def test_one_sample_for_each_sequence():
    turns = [turn(0, 3, 5, (3, 4)), turn(1, 6, 9, (7, 9))]
    sequences = (sequence(6, [(3, 5)]), sequence(9, [(6, 9)]), sequence(4, []))
    windows = Trajectory(TASK, sequences, tuple(turns), True, 1.0, "terminated")
    held = group(windows, LOST)
    samples = scored(held, {(0, 1): [-3.0, -4.0]})
    assert [sample.positions.tolist() for sample in samples[:2]] == [[3, 4], [6, 7, 8]]
    assert [sample.turns.tolist() for sample in samples[:2]] == [[0, 0], [1, 1, 1]]
    assert samples[0].teacher_logprobs is None
    np.testing.assert_array_equal(samples[1].teacher_logprobs, np.float32([NAN, -3.0, -4.0]))
    assert len(samples) == 3  # a sequence without sampled tokens gives none
    made = to_samples(held)
    assert [len(one.samples) for one in made.trajectories] == [2, 1]
    assign(made, Credit())
    per_turn = advantages(held, Credit())[0]
    for sample, own in zip(made.trajectories[0].samples, per_turn, strict=True):
        np.testing.assert_array_equal(sample.advantages, own)


def test_only_a_group_with_an_advantage_is_informative():
    for held, told in ((group(WON, WON), False), (group(WON), False), (group(WON, LOST), True)):
        made = to_samples(held)
        assert not made.informative  # not computed yet
        assign(made, Credit())
        assert made.informative == told


@pytest.mark.parametrize("values", [[0.0] * 3, [0.0]])
def test_values_of_another_length_are_refused(values):
    with pytest.raises(ValueError, match=rf"teacher_logprobs: {len(values)} values for 2 tokens"):
        scored(group(WON, LOST), {(0, 0): values})


def test_values_for_other_requests_are_refused():
    made = to_samples(group(WON, LOST))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        made.put("teacher_logprobs", [made.find(request(0, 0), "action")], [])


def test_a_turn_without_an_action_is_not_found():
    with pytest.raises(AssertionError, match="without an action"):
        to_samples(group(WON, LOST)).find(request(1, 1), "action")


def test_a_sampled_token_without_a_log_prob_is_refused():
    broken = Trajectory(TASK, (sequence(20, [(3, 6)]),), WON.turns, True, 1.0, "terminated")
    with pytest.raises(ValueError, match="no rollout log-prob"):
        to_samples(group(broken, LOST))


def test_metrics_add_up_and_failures_are_the_groups_own():
    failure = Failure("env", "gone", TASK.id)
    held = Group(0, TASK, (WON,), failures=(failure,))
    made = to_samples(held)
    made.count({"teacher/spans": 2, "teacher/tokens": 5})
    made.count({"teacher/spans": 1})
    assert made.figures == {"teacher/spans": 3.0, "teacher/tokens": 5.0}
    made.failures.append(failure)
    assert len(made.failures) == 2 and held.failures == (failure,)


def blank(size=4):
    """A sample of `size` sampled tokens at 2, 3, 4 …"""
    return TrainingSample(
        np.arange(1, size + 3, dtype=np.int32),
        np.arange(2, size + 2, dtype=np.int32),
        rollout_logprobs=-np.arange(size, dtype=np.float32),
    )


def test_put_leaves_other_tokens_as_they_were():
    sample = blank()
    sample.put("teacher_logprobs", slice(1, 2), np.float32([-1.0]))
    np.testing.assert_array_equal(sample.teacher_logprobs, np.float32([NAN, -1.0, NAN, NAN]))
    sample.put("teacher_logprobs", np.array([False, False, True, True]), np.float32([-2.0, -3.0]))
    np.testing.assert_array_equal(sample.teacher_logprobs, np.float32([NAN, -1.0, -2.0, -3.0]))
    sample.put("candidates", slice(0, 1), np.int32([[7, 8, 9]]))
    assert sample.candidates.dtype == np.int32
    assert sample.candidates.tolist() == [[7, 8, 9]] + [[0, 0, 0]] * 3  # there is no integer NaN
    sample.put("teacher_candidates", slice(3, 4), np.float32([[-1.0, -2.0]]))
    assert sample.teacher_candidates.shape == (4, 2) and np.isnan(sample.teacher_candidates[:3]).all()


def test_marks_add_up_and_each_loss_has_its_own():
    sample = blank()
    sample.mark("signal", slice(0, 1))
    sample.mark("signal", slice(2, 3))
    sample.mark("other", slice(3, 4))
    assert {name: mask.tolist() for name, mask in sample.masks.items()} == {
        "signal": [True, False, True, False],
        "other": [False, False, False, True],
    }


def test_select_keeps_the_tokens_of_a_loss_in_every_column():
    sample = blank()
    sample.put("teacher_logprobs", slice(0, 2), np.float32([-1.0, -2.0]))
    sample.put("candidates", slice(0, 4), np.arange(8, dtype=np.int32).reshape(4, 2))
    sample.mark("signal", slice(1, 2))
    sample.mark("signal", slice(3, 4))
    chosen = sample.select("signal")
    assert chosen.ids is sample.ids and chosen.positions.tolist() == [3, 5] and chosen.masks == {}
    assert chosen.rollout_logprobs.tolist() == [-1.0, -3.0]
    np.testing.assert_array_equal(chosen.teacher_logprobs, np.float32([-2.0, NAN]))
    assert chosen.candidates.tolist() == [[2, 3], [6, 7]]
    assert chosen.advantages is None and chosen.values is None
    assert len(sample.positions) == 4 and "signal" in sample.masks  # as it was
    assert sample.select("policy") is sample  # a loss without a mask has all tokens


def test_every_column_is_selected():
    assert {item.name for item in fields(TrainingSample)} - {"ids", "masks"} == set(COLUMNS)


def test_a_span_is_found_among_the_sampled_tokens():
    (sample,) = to_samples(group(WON)).samples
    assert sample.positions[sample.within(Span(4, 6))].tolist() == [4, 5]
    assert sample.positions[sample.within(Span(6, 12))].tolist() == [6, 10, 11]
    assert sample.within(Span(7, 10)) == slice(4, 4)  # nothing of it was sampled


def test_a_column_that_was_not_computed_is_not_given_out():
    sample = blank()
    assert sample.column("rollout_logprobs") is sample.rollout_logprobs
    with pytest.raises(AssertionError, match="advantages has not been computed"):
        sample.column("advantages")


def test_a_sample_has_the_columns_that_were_computed():
    sample = blank()
    sample.put("teacher_logprobs", slice(0, 1), np.float32([-1.0]))
    assert sample.has({"teacher_logprobs"}) and sample.has(())
    assert not sample.has({"teacher_logprobs", "advantages"})
