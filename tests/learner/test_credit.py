"""Advantages against numbers worked out by hand, and what must hold for every group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from learner_toys import group, trajectory, turn

from configs.schema import Credit
from learner.credit import advantages, grpo, turn_returns

returns_of_groups = st.lists(
    st.lists(st.sampled_from([0.0, -0.1, 9.9, 10.0]), min_size=1, max_size=6).map(np.array),
    min_size=1,
    max_size=8,
)


def test_returns_of_turns():
    turns = [turn(0, 1, 2), turn(0, 3, 4, action=None, valid=False), turn(0, 5, 6, valid=False)]
    credit = Credit(success_return=10.0, malformed_penalty=0.1)
    np.testing.assert_allclose(turn_returns(trajectory(turns, True), credit), [10.0, 9.9, 10.0])
    np.testing.assert_allclose(turn_returns(trajectory(turns, False), credit), [0.0, -0.1, 0.0])


def test_over_turns_by_hand():
    # samples 10, 0, 0, 0: mean 2.5, unbiased variance (7.5² + 3 · 2.5²) / 3 = 25, std 5
    won, lost = grpo([np.array([10.0]), np.array([0.0, 0.0, 0.0])], "turns")
    np.testing.assert_allclose(won, [1.5], rtol=1e-6)
    np.testing.assert_allclose(lost, [-0.5] * 3, rtol=1e-6)


def test_over_trajectories_by_hand():
    # samples 10 and 0: mean 5, unbiased std sqrt(50)
    won, lost = grpo([np.array([10.0]), np.array([0.0, 0.0, 0.0])], "trajectories")
    np.testing.assert_allclose(won, [5 / np.sqrt(50)], rtol=1e-6)
    np.testing.assert_allclose(lost, [-5 / np.sqrt(50)] * 3, rtol=1e-6)


def test_a_malformed_turn_is_worth_less_than_its_neighbours():
    turns = [turn(0, 1, 2), turn(0, 3, 4, action=None, valid=False)]
    made = advantages(group(trajectory(turns, True), trajectory(turns, False)), Credit())
    assert made[0][1] < made[0][0] and made[1][1] < made[1][0]


@pytest.mark.parametrize("statistics", ["turns", "trajectories"])
def test_a_group_without_a_difference_gives_zero(statistics):
    for equal in ([np.array([10.0, 9.9])], [np.array([10.0]), np.array([10.0, 10.0])], [np.array([0.0])] * 4):
        assert [values.tolist() for values in grpo(equal, statistics)] == [[0.0] * len(v) for v in equal]


@given(returns_of_groups)
def test_sum_to_zero_over_the_samples_of_the_statistics(returns):
    by_turn = np.concatenate(grpo(returns, "turns"))
    assert abs(by_turn.sum()) < 1e-3
    by_trajectory = [values.mean() for values in grpo(returns, "trajectories")]
    assert abs(np.sum(by_trajectory)) < 1e-3


@given(returns_of_groups, st.randoms(use_true_random=False))
def test_order_and_scale_do_not_matter(returns, random):
    assume(len(returns) > 1)
    order = list(range(len(returns)))
    random.shuffle(order)
    plain = grpo(returns, "turns")
    shuffled = grpo([returns[i] for i in order], "turns")
    scaled = grpo([1000 * values for values in returns], "turns")
    for place, index in enumerate(order):
        np.testing.assert_allclose(shuffled[place], plain[index], atol=1e-4)
        np.testing.assert_allclose(scaled[index], plain[index], atol=1e-3)
