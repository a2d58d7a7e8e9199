"""GAE by hand, against the sums of its definition, in its two limits, and written into samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import TASK, group, sequence, trajectory, turn, visits

from hindsight.configs.method import Credit
from hindsight.learner.batching import collate
from hindsight.learner.credit import advantages
from hindsight.learner.gae import (
    GaeSettings,
    estimate,
    fit,
    gae,
    mask_steps,
    token_rewards,
    turn_rewards,
    whiten,
)
from hindsight.learner.samples import TrainingSample, to_samples
from hindsight.rollout.types import Trajectory

PLAIN = GaeSettings(advantage="gae", whiten=False)
TURNS = replace(PLAIN, step="turn")
# Two turns of two tokens and one: in one growing chat, and each in a context of its own.
CHAT = trajectory([turn(0, 2, 4), turn(0, 6, 7, action=None)], True, length=7)
WINDOWS = Trajectory(
    TASK,
    (sequence(5, [(3, 5)]), sequence(6, [(5, 6)])),
    (turn(0, 3, 5), turn(1, 5, 6, action=None)),
    True,
    1.0,
    "terminated",
)
SWAPPED = replace(  # the second turn's sequence comes first
    WINDOWS,
    sequences=WINDOWS.sequences[::-1],
    turns=(turn(1, 3, 5), turn(0, 5, 6, action=None)),
)

steps_of = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=0, max_size=12).map(
    lambda pairs: np.array(pairs, dtype=np.float64).reshape(-1, 2).T
)
share = st.floats(0, 1)


def test_by_hand():
    # δ = 0 + 0.5·4 − 2, 1 + 0.5·6 − 4, 10 − 6 = 0, 0, 4; A = 4·0.25², 4·0.25, 4
    advantages, targets = gae(
        np.array([0.0, 1.0, 10.0]), np.array([2.0, 4.0, 6.0]), gamma=0.5, gae_lambda=0.5
    )
    assert advantages.tolist() == [0.25, 1.0, 4.0] and targets.tolist() == [2.25, 5.0, 10.0]


@given(steps_of, share, share)
def test_equals_the_sums_of_the_definition(steps, gamma, lam):
    rewards, values = steps
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    expected = [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]
    advantages, targets = gae(rewards, values, gamma, lam)
    np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(targets - advantages, values, rtol=1e-4, atol=1e-4)


@given(steps_of)
def test_limits_of_lambda(steps):
    rewards, values = steps
    to_come = np.cumsum(rewards[::-1])[::-1]
    np.testing.assert_allclose(gae(rewards, values)[0], to_come - values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gae(rewards, values)[1], to_come, rtol=1e-4, atol=1e-4)
    bootstrapped = rewards + np.append(values, 0.0)[1:]
    np.testing.assert_allclose(gae(rewards, values, gae_lambda=0.0)[1], bootstrapped, rtol=1e-4, atol=1e-4)


@given(steps_of)
def test_a_perfect_critic_leaves_no_advantage(steps):
    rewards, _ = steps
    to_come = np.cumsum(rewards[::-1])[::-1]
    np.testing.assert_allclose(gae(rewards, to_come, gae_lambda=0.7)[0], 0.0, atol=1e-4)


def test_rewards_of_turns_and_tokens():
    played, credit = visits(True, "abc", malformed=[1]), Credit()
    assert turn_rewards(played, credit).tolist() == [0.0, -0.1, 10.0]
    assert token_rewards(played, credit).tolist() == [0.0, 0.0, 0.0, -0.1, 0.0, 10.0]
    assert turn_rewards(visits(False, "a", malformed=[0]), credit).tolist() == [-0.1]


def test_values_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 rewards do not fit 2 values"):
        gae(np.zeros(3), np.zeros(2))


def estimated(groups, credit, values):
    """The sample groups of some groups; `values`: the critic's, of each sample."""
    made = [to_samples(one) for one in groups]
    mask_steps(made, credit)
    estimate(made, [np.array(own, np.float32) for own in values], credit)
    return made


def joined(samples, column):
    return np.concatenate([getattr(sample, column) for sample in samples])


def test_steps_are_sampled_tokens_or_turns():
    def steps(played, credit):
        made = to_samples(group(played))
        mask_steps([made], credit)
        return [sample.select("value").positions.tolist() for sample in made.samples]

    assert steps(CHAT, PLAIN) == [[2, 3, 6]]
    assert steps(CHAT, TURNS) == [[2, 6]]
    assert steps(WINDOWS, PLAIN) == [[3, 4], [5]]
    assert steps(WINDOWS, TURNS) == [[3], [5]]
    assert steps(replace(CHAT, turns=()), PLAIN) == []


@pytest.mark.parametrize(
    ("played", "values", "order"),
    [
        (CHAT, [[2, 4, 6]], [0, 1, 2]),
        (WINDOWS, [[2, 4], [6]], [0, 1, 2]),
        (SWAPPED, [[6], [2, 4]], [2, 0, 1]),
    ],
)
def test_tokens_by_hand(played, values, order):
    """δ = 0 + ½·4 − 2, 0 + ½·6 − 4, (10 − 0.1) − 6 = 0, −1, 3.9; A = −¼ + 3.9/16, −1 + 3.9/4, 3.9."""
    (made,) = estimated([group(played)], replace(PLAIN, gamma=0.5, gae_lambda=0.5), values)
    expected, held = np.array([-0.00625, -0.025, 3.9])[order], np.array([2, 4, 6])[order]
    np.testing.assert_allclose(joined(made.samples, "advantages"), expected, atol=1e-6)
    np.testing.assert_allclose(joined(made.samples, "returns"), expected + held, atol=1e-6)
    np.testing.assert_array_equal(collate([one.select("value") for one in made.samples]).values, held)
    assert {sample.advantages.dtype for sample in made.samples} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("played", "values"), [(CHAT, [[1, 2]]), (WINDOWS, [[1], [2]]), (SWAPPED, [[2], [1]])]
)
def test_turns_by_hand(played, values):
    """A turn's tokens share what it was worth: R − V, with R = 9.9 from either turn on."""
    (made,) = estimated([group(played)], TURNS, values)
    turns = joined(made.samples, "turns")
    np.testing.assert_allclose(joined(made.samples, "advantages"), np.where(turns == 0, 8.9, 7.9), rtol=1e-6)
    taught = [sample.select("value") for sample in made.samples]
    np.testing.assert_allclose(joined(taught, "returns"), [9.9, 9.9], rtol=1e-6)
    assert np.isnan(joined(made.samples, "returns")).sum() == 1  # of the token that begins no turn


def test_each_trajectory_keeps_its_own_in_a_batch_that_lost_some():
    """Three groups: two episodes, none (infrastructure dropped them), one."""
    failed = trajectory([turn(0, 1, 3)], False)
    groups = [group(CHAT, failed, ordinal=7), group(ordinal=8), group(WINDOWS, ordinal=9)]
    made = estimated(groups, PLAIN, [[1.0] * 3, [2.0] * 2, [3.0] * 2, [4.0]])
    assert [len(one.samples) for one in made] == [2, 0, 2]
    np.testing.assert_allclose(made[0].samples[0].advantages, [8.9] * 3, rtol=1e-6)
    assert made[0].samples[1].advantages.tolist() == [-2.0, -2.0]
    np.testing.assert_allclose(joined(made[2].samples, "advantages"), [6.9, 6.9, 5.9], rtol=1e-6)
    assert estimated([group()], GaeSettings(advantage="gae"), [])[0].samples == []


def samples_of(column, *arrays):
    """Samples that have one column."""
    made = []
    for values in arrays:
        positions = np.arange(1, len(values) + 1, dtype=np.int32)
        made.append(TrainingSample(np.zeros(len(values) + 1, np.int32), positions))
        made[-1].put(column, slice(None), np.array(values, np.float32))
    return made


def test_whitening_runs_over_the_tokens_of_the_batch():
    samples = samples_of("advantages", [1, 2, 6], [3])
    whiten(samples)
    expected = (np.array([1, 2, 6, 3]) - 3) / np.sqrt(14 / 4)
    np.testing.assert_allclose(joined(samples, "advantages"), expected, rtol=1e-5)
    flat = samples_of("advantages", [7.0] * 5)
    whiten(flat)
    assert flat[0].advantages.tolist() == [0.0] * 5
    whiten([])
    plain, white = (
        estimated([group(CHAT, WINDOWS)], one, [[1, 2, 3], [4, 5], [6]])[0].samples
        for one in (PLAIN, replace(PLAIN, whiten=True))
    )
    whiten(plain)
    np.testing.assert_array_equal(joined(white, "advantages"), joined(plain, "advantages"))


def test_fit_by_hand():
    samples = samples_of("values", [1, 2], [3])
    for sample, returns in zip(samples, ([2, 2], [5]), strict=True):
        sample.put("returns", slice(None), np.array(returns, np.float32))
    # Errors 1, 0, 2 have the variance 2/3, returns 2, 2, 5 have 2.
    assert fit(samples) == pytest.approx({"value_mean": 2, "return_mean": 3, "explained_variance": 2 / 3})
    assert np.isnan(fit(samples[:1])["explained_variance"])


def test_gae_does_not_compare_siblings():
    with pytest.raises(TypeError, match="a critic's values"):
        advantages(group(CHAT), PLAIN)
