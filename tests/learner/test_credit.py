"""Advantages by hand, against slow second versions of the equations, and what must hold for every group."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import group, trajectory, turn, visits

from hindsight.configs.method import Credit
from hindsight.learner.credit import Anchored, GigpoSettings, HgpoSettings, advantages, assign, turn_returns
from hindsight.learner.samples import to_samples

# One per trajectory: success, and of each turn its state and whether it parsed.
episodes = st.tuples(
    st.booleans(), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=6)
)
groups = st.lists(episodes, min_size=1, max_size=6)
shared = {
    "statistics": st.sampled_from(["turns", "trajectories"]),
    "normalize": st.sampled_from(["std", "none"]),
}
discounts = st.sampled_from([1.0, 0.95, 0.5])
group_credits = st.builds(Credit, advantage=st.sampled_from(["grpo", "rloo"]), **shared)
gigpo_credits = st.builds(
    GigpoSettings,
    advantage=st.just("gigpo"),
    discount=discounts,
    step_weight=st.sampled_from([0.0, 0.7, 1.0]),
    **shared,
)
hgpo_credits = st.builds(
    HgpoSettings,
    advantage=st.just("hgpo"),
    discount=discounts,
    history=st.integers(0, 4),
    history_alpha=st.sampled_from([0.0, 1.0, 1.5]),
    history_offset=st.sampled_from([1, 2]),
    join_group=st.booleans(),
    **shared,
)
credits_of = st.one_of(group_credits, gigpo_credits, hgpo_credits)


def by_turn(held, credit):
    """(T,) float32 advantages of each trajectory's turns, whose tokens all have the same."""
    made = advantages(held, credit)
    for turns, played in zip(made, held.trajectories, strict=True):
        for values, own in zip(turns, played.turns, strict=True):
            assert values.dtype == np.float32 and values.shape == (own.end - own.start,)
            assert (values == values[0]).all()
    return [np.array([values[0] for values in turns], np.float32) for turns in made]


def make(rows):
    """The group of what `groups` draws."""
    return group(
        *(
            visits(
                success,
                [state for state, _ in turns],
                [n for n, (_, parsed) in enumerate(turns) if not parsed],
            )
            for success, turns in rows
        )
    )


def returns_of(rows, credit, discount=1.0):
    """R or G_t of every turn, written from the definition."""
    return [
        [
            credit.success_reward * success * discount ** (len(turns) - 1 - number)
            - credit.malformed_penalty * (not parsed)
            for number, (_, parsed) in enumerate(turns)
        ]
        for success, turns in rows
    ]


def standard(value, peers, credit, deviation):
    if len(peers) < 2 or max(peers) - min(peers) < 1e-9:  # the same up to rounding
        return 0.0
    scale = deviation(peers) + 1e-6 if credit.normalize == "std" else 1.0
    apart = value - fmean(peers)
    return 0.0 if abs(apart) < 1e-9 else apart / scale


def naive_group(rows, credit, leave_one_out=False):
    returns = returns_of(rows, credit)
    if credit.statistics == "turns":
        samples = [value for row in returns for value in row]
    else:
        samples = [fmean(row) for row in returns]
    if len(rows) == 1:
        samples = []
    if leave_one_out:
        n, plain = len(samples), replace(credit, normalize="none")
        return [[n / max(1, n - 1) * standard(v, samples, plain, stdev) for v in row] for row in returns]
    return [[standard(value, samples, credit, stdev) for value in row] for row in returns]


def naive_gigpo(rows, credit):
    steps, whole = returns_of(rows, credit, credit.discount), naive_group(rows, credit)
    made = []
    for i, (_, turns) in enumerate(rows):
        made.append([])
        for t, (state, _) in enumerate(turns):
            peers = [
                steps[j][u]
                for j, (_, others) in enumerate(rows)
                for u, (other, _) in enumerate(others)
                if other == state
            ]
            made[i].append(whole[i][t] + credit.step_weight * standard(steps[i][t], peers, credit, stdev))
    return made


def naive_hgpo(rows, credit):
    steps, whole = returns_of(rows, credit, credit.discount), naive_group(rows, credit)
    states = [[state for state, _ in turns] for _, turns in rows]

    def peers_of(i, t, k):
        wanted = states[i][t - k : t + 1]
        return [
            steps[j][u]
            for j, row in enumerate(states)
            for u in range(k, len(row))
            if row[u - k : u + 1] == wanted
        ]

    made = []
    for i, row in enumerate(states):
        made.append([])
        for t in range(len(row)):
            terms = [(1.0, whole[i][t])] if credit.join_group else []
            terms += [
                (
                    (k + credit.history_offset) ** credit.history_alpha,
                    standard(steps[i][t], peers_of(i, t, k), credit, pstdev),
                )
                for k in range(min(credit.history, t) + 1)
            ]
            terms = [(weight, value) for weight, value in terms if value != 0]
            total = sum(weight for weight, _ in terms)
            made[i].append(sum(weight * value for weight, value in terms) / total if terms else 0.0)
    return made


NAIVE = {
    "grpo": naive_group,
    "rloo": lambda rows, credit: naive_group(rows, credit, leave_one_out=True),
    "gigpo": naive_gigpo,
    "hgpo": naive_hgpo,
}


def test_returns_of_turns():
    turns = [turn(0, 1, 2), turn(0, 3, 4, action=None, valid=False), turn(0, 5, 6, valid=False)]
    credit = Credit(success_reward=10.0, malformed_penalty=0.1)
    np.testing.assert_allclose(turn_returns(trajectory(turns, True), credit), [10.0, 9.9, 10.0])
    np.testing.assert_allclose(turn_returns(trajectory(turns, False), credit), [0.0, -0.1, 0.0])
    np.testing.assert_allclose(turn_returns(trajectory(turns, True), credit, 0.5), [2.5, 4.9, 10.0])
    strict = Credit(success_reward=10.0, malformed_penalty=0.1, inadmissible_penalty=1.0)
    np.testing.assert_allclose(turn_returns(trajectory(turns, True), strict), [10.0, 9.9, 9.0])


def test_where_all_failed_an_inadmissible_action_alone_is_to_blame():
    turns = [turn(0, 1, 2), turn(0, 3, 4, valid=False)]
    held = group(trajectory(turns, False), trajectory(turns, False))
    samples = to_samples(held)
    for credit, told in ((Credit(), False), (Credit(inadmissible_penalty=1.0), True)):
        assign(samples, credit)
        assert samples.informative == told
    # samples 0, −1, 0, −1: mean −½, unbiased std √⅓
    for advantage in by_turn(held, Credit(inadmissible_penalty=1.0)):
        np.testing.assert_allclose(advantage, [0.75**0.5, -(0.75**0.5)], rtol=1e-5)


def test_grpo_over_turns_by_hand():
    # samples 10, 0, 0, 0: mean 2.5, unbiased variance (7.5² + 3 · 2.5²) / 3 = 25, std 5
    held = group(visits(True, "a"), visits(False, "abc"))
    won, lost = by_turn(held, Credit())
    np.testing.assert_allclose(won, [1.5], rtol=1e-6)
    np.testing.assert_allclose(lost, [-0.5] * 3, rtol=1e-6)
    won, lost = by_turn(held, Credit(normalize="none"))
    assert won.tolist() == [7.5] and lost.tolist() == [-2.5] * 3


def test_grpo_over_trajectories_by_hand():
    # samples 10 and 0: mean 5, unbiased std sqrt(50)
    won, lost = by_turn(group(visits(True, "a"), visits(False, "abc")), Credit(statistics="trajectories"))
    np.testing.assert_allclose(won, [5 / np.sqrt(50)], rtol=1e-6)
    np.testing.assert_allclose(lost, [-5 / np.sqrt(50)] * 3, rtol=1e-6)


def test_rloo_by_hand():
    # each return less the mean of the two others: 10 − 0 and 0 − 5
    held = group(visits(True, "a"), visits(False, "ab"), visits(False, "a"))
    made = by_turn(held, Credit(advantage="rloo", statistics="trajectories"))
    assert [values.tolist() for values in made] == [[10.0], [-5.0, -5.0], [-5.0]]


def test_gigpo_by_hand():
    # won: a b, G = 5 10; lost: a c, G = 0 0. Both start in a: mean 2.5; b and c are seen once.
    held = group(visits(True, "ab"), visits(False, "ac"))
    credit = GigpoSettings(advantage="gigpo", normalize="none", discount=0.5, step_weight=2.0)
    won, lost = by_turn(held, credit)
    assert won.tolist() == [5.0 + 2 * 2.5, 5.0] and lost.tolist() == [-5.0 - 2 * 2.5, -5.0]
    # with std: the episode's is sqrt(100 / 3), that of the anchor sqrt(12.5)
    won, _ = by_turn(held, replace(credit, normalize="std", step_weight=1.0))
    np.testing.assert_allclose(won, [5 / np.sqrt(100 / 3) + 2.5 / np.sqrt(12.5), 5 / np.sqrt(100 / 3)], 1e-6)


def test_gigpo_counts_a_state_visited_again_as_its_own_peer():
    # one state, G = 2.5 5 10 and 0: mean 4.375
    credit = GigpoSettings(advantage="gigpo", normalize="none", discount=0.5)
    won, lost = by_turn(group(visits(True, "aaa"), visits(False, "a")), credit)
    np.testing.assert_allclose(won, [2.5 - 1.875, 2.5 + 0.625, 2.5 + 5.625])
    np.testing.assert_allclose(lost, [-7.5 - 4.375])


@pytest.mark.parametrize("offset", [1, 2])
def test_hgpo_by_hand(offset):
    # G = 2.5 5 10 and 0 0 0 and 5 10. In c: 10 0 10, mean 20/3; after b too; after a and b: 10 0, mean 5
    held = group(visits(True, "abc"), visits(False, "abc"), visits(True, "bc"))
    credit = HgpoSettings(advantage="hgpo", normalize="none", discount=0.5, history=2, history_offset=offset)
    first, second, third = by_turn(held, credit)
    w = np.arange(3.0) + offset
    assert first[2] == pytest.approx((w[0] * 10 / 3 + w[1] * 10 / 3 + w[2] * 5) / w.sum())
    assert second[2] == pytest.approx(-(w[0] * 20 / 3 + w[1] * 20 / 3 + w[2] * 5) / w.sum())
    assert third[1] == pytest.approx(10 / 3)  # only one turn before it: no A_2
    assert first[0] == pytest.approx(1.25) and second[0] == pytest.approx(-1.25)  # in a: 2.5 0


def test_hgpo_leaves_histories_of_one_turn_out():
    # in b: 10 0, after two different states: A_1 does not dilute A_0; x and y are seen once
    made = by_turn(group(visits(True, "xb"), visits(False, "yb")), HgpoSettings("hgpo", normalize="none"))
    assert [values.tolist() for values in made] == [[0.0, 5.0], [0.0, -5.0]]


def test_hgpo_can_join_the_advantage_of_the_group():
    # in a: 10 0, so A_0 = ±5 of weight 2; the group's samples are 10 0 0 0, mean 2.5, of weight 1
    held = group(visits(True, "a"), visits(False, "abb"))
    credit = HgpoSettings(advantage="hgpo", normalize="none", discount=0.5, history=0, join_group=True)
    won, lost = by_turn(held, credit)
    assert won.tolist() == pytest.approx([(7.5 + 2 * 5) / 3])
    assert lost.tolist() == pytest.approx([(-2.5 - 2 * 5) / 3, -2.5, -2.5])


def test_a_malformed_turn_is_worth_less_than_its_neighbors():
    held = group(visits(True, "ab", malformed=[1]), visits(False, "ab", malformed=[1]))
    made = by_turn(held, Credit())
    assert made[0][1] < made[0][0] and made[1][1] < made[1][0]


def test_similar_states_can_be_peers():
    held = group(visits(True, ["a room of 2 doors"]), visits(False, ["a room of 3 doors"]))
    credit = HgpoSettings(advantage="hgpo", normalize="none")
    assert [values.tolist() for values in by_turn(held, credit)] == [[0.0], [0.0]]
    made = by_turn(held, replace(credit, similarity=0.9))
    assert [values.tolist() for values in made] == [[5.0], [-5.0]]


def test_hgpo_counts_a_turn_at_the_mean_as_no_comparison_also_after_rounding():
    # in a, less 0.1 each: 10 10 5 10 0 0 0, whose mean is the third's 5 up to rounding; of the group's
    # samples (four times 10, three times 0) it is 4.29 above the mean
    rounded = [visits(True, "a", [0]), visits(True, "a", [0]), visits(True, "aa", [0, 1])]
    held = group(*rounded, visits(False, "aaa", [0, 1, 2]))
    credit = HgpoSettings(
        "hgpo", normalize="none", discount=0.5, history=0, history_offset=1, join_group=True
    )
    assert by_turn(held, credit)[2][0] == pytest.approx(10 - 40 / 7)


@given(groups, credits_of)
def test_every_estimator_equals_its_slow_version(rows, credit):
    made, expected = by_turn(make(rows), credit), NAIVE[credit.advantage](rows, credit)
    for values, right in zip(made, expected, strict=True):
        np.testing.assert_allclose(values, right, rtol=1e-5, atol=1e-5)


@given(groups, credits_of, st.randoms(use_true_random=False))
def test_the_order_of_trajectories_does_not_matter(rows, credit, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    plain, shuffled = by_turn(make(rows), credit), by_turn(make([rows[i] for i in order]), credit)
    for place, index in enumerate(order):
        np.testing.assert_allclose(shuffled[place], plain[index], rtol=1e-5, atol=1e-5)


@given(groups, credits_of)
def test_scale_of_returns_matters_only_without_std(rows, credit):
    larger = replace(credit, success_reward=1000.0, malformed_penalty=10.0)
    factor = 100.0 if credit.normalize == "none" or credit.advantage == "rloo" else 1.0
    for plain, scaled in zip(by_turn(make(rows), credit), by_turn(make(rows), larger), strict=True):
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-3, atol=1e-3)


@given(groups, credits_of)
def test_equal_returns_give_zero(rows, credit):
    equal = make([(True, [(state, True) for state, _ in turns]) for _, turns in rows])
    credit = replace(credit, discount=1.0) if isinstance(credit, Anchored) else credit
    made = by_turn(equal, credit)
    assert not any(values.any() for values in made)


@given(groups, group_credits)
def test_sum_to_zero_over_the_samples_of_the_statistics(rows, credit):
    made = by_turn(make(rows), credit)
    parts = made if credit.statistics == "turns" else [[values.mean()] for values in made]
    assert abs(np.concatenate(parts).sum()) < 1e-3


@given(groups, gigpo_credits)
def test_step_advantages_of_an_anchor_sum_to_zero(rows, credit):
    held = make(rows)
    whole = by_turn(held, replace(credit, advantage="grpo"))
    both = by_turn(held, replace(credit, step_weight=1.0))
    for wanted in "abc":
        steps = [
            both[i][t] - whole[i][t]
            for i, (_, turns) in enumerate(rows)
            for t, (state, _) in enumerate(turns)
            if state == wanted
        ]
        assert abs(math.fsum(steps)) < 1e-4
        assert len(steps) != 1 or steps == [0.0]  # alone at its anchor


@given(groups, gigpo_credits)
def test_gigpo_without_step_weight_is_its_episode_part(rows, credit):
    held = make(rows)
    whole = by_turn(held, replace(credit, advantage="grpo"))
    both = by_turn(held, replace(credit, step_weight=0.0))
    for values, right in zip(both, whole, strict=True):
        np.testing.assert_array_equal(values, right)


@given(groups, gigpo_credits)
def test_hgpo_without_history_is_the_step_part_of_gigpo(rows, credit):
    held, plain = make(rows), replace(credit, normalize="none")
    whole = by_turn(held, replace(plain, advantage="grpo"))
    both = by_turn(held, replace(plain, step_weight=1.0))
    alone = by_turn(held, HgpoSettings("hgpo", normalize="none", discount=credit.discount, history=0))
    for values, total, episode in zip(alone, both, whole, strict=True):
        np.testing.assert_allclose(values, total - episode, atol=1e-4)
