"""The teacher's weights: their schedule, their bounds, and that they never turn an update around."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hindsight.learner.reweight import raw_weights, reweight, strength_at
from hindsight.learner.signals import Reweight

# Returns so close that an advantage would underflow are the same (learner.credit).
sizes = st.floats(2**-20, 5, width=32)
signed = st.one_of(st.just(0.0), sizes, sizes.map(lambda size: -size))
finite = st.floats(-50, 50, width=32)
pairs = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=signed),
        hnp.arrays(np.float32, n, elements=st.one_of(finite, st.just(math.nan))),
    )
)


def test_schedule():
    expected = pytest.approx([0.5, 0.25, 0.01, 0.0, 0.0])
    assert [strength_at(step, 0.5, 50) for step in (0, 25, 49, 50, 99)] == expected
    falling = Reweight(Reweight.Settings(strength=0.5, decay_steps=50))
    assert [falling.strength(step) for step in (0, 25, 49, 50, 99)] == expected
    assert Reweight(Reweight.Settings(strength=0.5, decay_steps=0)).strength(10**6) == 0.5


def test_by_hand():
    # Δ = ln 1.1 agrees with A > 0 (weight 1.1) and speaks against A < 0 (weight 1 / 1.1);
    # Δ = ln 3 is clipped to 1.2, and to 0.8 for A < 0; λ = 0.5 takes half of the distance to 1
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    gap = torch.tensor([math.log(1.1), math.log(1.1), math.log(3), math.log(3), math.nan])
    expected = [2 * 1.05, -2 * (0.5 + 0.5 / 1.1), 2 * 1.1, -2 * 0.9, 2.0]
    assert reweight(advantages, gap, 0.5, 0.2).tolist() == pytest.approx(expected, rel=1e-6)


def test_huge_gaps_stay_finite():
    advantages = torch.tensor([1.0, -1.0, 1.0])
    gap = torch.tensor([1e6, 1e6, -math.inf])
    assert torch.isfinite(raw_weights(advantages, gap)).all()
    assert reweight(advantages, gap, 1.0, 0.2).tolist() == pytest.approx([1.2, -0.8, 0.8])


@given(pairs, st.floats(0, 1), st.floats(0, 1))
def test_bounded_and_never_against_the_reward(pair, strength, clip):
    advantages, gap = map(torch.from_numpy, pair)
    shaped = reweight(advantages, gap, strength, clip)
    slack = 1e-6 * advantages.abs()
    assert (shaped.abs() <= advantages.abs() * (1 + strength * clip) + slack).all()
    assert (shaped.abs() >= advantages.abs() * (1 - strength * clip) - slack).all()
    assert (shaped * advantages >= 0).all()
    if strength * clip < 1:
        assert torch.equal(torch.sign(shaped), torch.sign(advantages))


@given(pairs, st.floats(0, 1))
def test_no_strength_or_no_teacher_is_grpo_to_the_bit(pair, clip):
    advantages, gap = map(torch.from_numpy, pair)
    assert torch.equal(reweight(advantages, gap, 0.0, clip), advantages)
    assert torch.equal(reweight(advantages, torch.full_like(gap, math.nan), 0.5, clip), advantages)
