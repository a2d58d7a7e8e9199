"""GAE by hand, against the sums of its definition, and in its two limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import visits

from hindsight.configs.schema import Credit
from hindsight.learner.gae import gae, token_rewards, turn_rewards

steps_of = st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=0, max_size=12).map(
    lambda pairs: np.array(pairs, dtype=np.float64).reshape(-1, 2).T
)
share = st.floats(0, 1)


def test_by_hand():
    # δ = 0 + 0.5·4 − 2, 1 + 0.5·6 − 4, 10 − 6 = 0, 0, 4; A = 4·0.25², 4·0.25, 4
    advantages, targets = gae(np.array([0.0, 1.0, 10.0]), np.array([2.0, 4.0, 6.0]), gamma=0.5, lam=0.5)
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
    np.testing.assert_allclose(gae(rewards, values, lam=0.0)[1], bootstrapped, rtol=1e-4, atol=1e-4)


@given(steps_of)
def test_a_perfect_critic_leaves_no_advantage(steps):
    rewards, _ = steps
    to_come = np.cumsum(rewards[::-1])[::-1]
    np.testing.assert_allclose(gae(rewards, to_come, lam=0.7)[0], 0.0, atol=1e-4)


def test_rewards_of_turns_and_tokens():
    played, credit = visits(True, "abc", malformed=[1]), Credit()
    assert turn_rewards(played, credit).tolist() == [0.0, -0.1, 10.0]
    assert token_rewards(played, credit).tolist() == [0.0, 0.0, 0.0, -0.1, 0.0, 10.0]
    assert turn_rewards(visits(False, "a", malformed=[0]), credit).tolist() == [-0.1]


def test_values_of_another_length_are_refused():
    with pytest.raises(ValueError, match="3 rewards do not fit 2 values"):
        gae(np.zeros(3), np.zeros(2))
