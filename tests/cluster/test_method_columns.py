"""What control arms, signals of whole turns and the diversity of a group make of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from test_method import SERL, Produced

from hindsight.cluster.metrics import distinct
from hindsight.teacher.scorer import Scored


def test_control_arms_change_what_the_teacher_sees_and_nothing_else():
    plain = Produced(*SERL)
    bare = Produced(*SERL, "feedback.control=no_hindsight")
    assert plain.scored == bare.scored and len(bare.asked) == len(plain.asked) > 0
    for own, control in zip(plain.asked, bare.asked, strict=True):
        behind = len(control.tail)
        assert control.hint == 0 and own.hint > 0 and own.tail[-behind:].tolist() == control.tail.tolist()
    assert Produced(*SERL, "feedback.control=other_task").asked == []  # no other task came before
    assert Produced(*SERL, "feedback.control=random_turns").scored == plain.scored  # each has one turn


def test_shuffling_permutes_the_gaps_of_a_turn():
    """A turn has three tokens here, so that all of them stay in place for one of six draws."""

    one = Scored(np.array([-1.0, -2.0, -3.0], np.float32), np.zeros((3, 0), np.float32))

    def score(sequences, requests, version):
        return [one] * len(requests)

    def gaps(*overrides):
        made = Produced(*SERL, "signal.tokens=response", *overrides, score=score)
        return [(one.teacher_logprobs - one.rollout_logprobs).tolist() for one in made.group.samples]

    drawn = [gaps("feedback.control=shuffled", f"seed={seed}") for seed in range(4)]
    assert all(sorted(own) == sorted(plain) for own, plain in zip(chain(*drawn), 4 * gaps(), strict=True))
    assert any(made != gaps() for made in drawn)


def test_a_signal_that_weighs_turns_gets_the_whole_group():
    made = Produced("signal.name=belief", "feedback.sources=[immediate]")
    asyncio.run(made.method.finish([made.group], 0))
    assert all(sample.shaped is not None for sample in made.group.samples)
    policy = made.method.losses([made.group])["policy"]
    assert [sample.advantages.tolist() for sample in policy] == [
        s.shaped.tolist() for s in made.group.samples
    ]
    assert all(sample.shaped is None for sample in Produced(*SERL).group.samples)


def test_opid_learns_from_a_group_whose_returns_are_equal():
    made = Produced("method=opid", "feedback.sources=[immediate]", "loss.kl=0", successes=(False, False))
    assert len(made.asked) == 2 and not made.group.informative
    asyncio.run(made.method.finish([made.group], 0))
    policy = made.method.losses([made.group])["policy"]
    gaps = [one.teacher_logprobs - one.rollout_logprobs for one in made.group.samples]
    assert [one.advantages.tolist() for one in policy] == [
        pytest.approx((0.001 * np.nan_to_num(gap)).tolist()) for gap in gaps
    ]
    assert any(np.nan_to_num(gap).any() for gap in gaps)


def test_grsd_weighs_the_turns_of_a_group_with_both_outcomes():
    made = Produced("method=grsd", "feedback.sources=[immediate]", "loss.kl=0", successes=(True, False))
    asyncio.run(made.method.finish([made.group], 0))
    own = made.group.samples
    signs = [np.sign(one.advantages[0]) for one in own]
    gaps = [np.nanmean(one.teacher_logprobs - one.rollout_logprobs) for one in own]  # each has one turn
    changes = np.expm1(np.array(signs) * gaps)
    factors = 1 + 0.5 * np.clip(changes / np.abs(changes).mean(), -0.2, 0.2)
    for one, factor in zip(own, factors, strict=True):
        assert one.shaped == pytest.approx(one.advantages * factor, rel=1e-4)
    assert factors != pytest.approx(1.0)


def test_a_group_counts_the_sequences_of_actions_that_differ():
    made = Produced(*SERL, successes=(True, False, False)).group.group
    assert distinct(made) == pytest.approx(1 / 3)  # all looked
    stared = replace(made.trajectories[0], turns=(replace(made.trajectories[0].turns[0], action="stare"),))
    assert distinct(replace(made, trajectories=(stared, *made.trajectories[1:]))) == pytest.approx(2 / 3)
