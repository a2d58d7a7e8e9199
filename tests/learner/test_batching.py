"""Micro-batches: nothing lost, nothing twice, everything within its budget, ranks in step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import random_samples

from hindsight.configs.schema import Config, Learner
from hindsight.learner.batching import collate, over_ranks, split
from hindsight.learner.packing import pack_rows
from hindsight.learner.plan import plan_updates

rows_of = st.lists(
    st.builds(  # few letters: many rows begin alike
        lambda seed, size: np.random.default_rng(seed).integers(0, 2, size).astype(np.int32),
        st.integers(0, 20),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=20,
)


def computed(rows, micro):
    """Tokens that a micro-batch computes."""
    return len({rows[index][:end].tobytes() for index in micro for end in range(1, len(rows[index]) + 1)})


@given(rows_of, st.integers(1, 120), st.integers(1, 5))
def test_ranks_get_equally_many_and_lose_nothing(rows, budget, ranks):
    plan = over_ranks(rows, budget, ranks)
    assert len(plan) == ranks and len({len(batches) for batches in plan}) == 1
    flat = [batch for batches in plan for batch in batches]
    assert sorted(index for batch in flat for index in batch) == list(range(len(rows)))
    for batch in flat:
        assert len(batch) <= 1 or computed(rows, batch) <= budget
    # Two neighbors in the order of their loads exceed the budget together, or could be one.
    assert len(plan[0]) <= 1 + -(-2 * sum(min(len(row), budget) for row in rows) // (budget * ranks))
    assert plan == over_ranks(list(rows), budget, ranks)


@given(rows_of, st.integers(1, 120))
def test_what_a_plan_counts_is_what_is_computed(rows, budget):
    """Rows in the plan's order, packed: each beginning that several have stands once."""
    for micro in over_ranks(rows, budget, 1)[0]:
        packed, _ = pack_rows([rows[index] for index in micro])
        assert len(packed.ids) == computed(rows, micro)


def group_of(size, prompt, rest, seed):
    """Rows of one group: the same prompt, then different tokens."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 2**31, prompt)
    return [np.concatenate([first, rng.integers(0, 2**31, rest)]).astype(np.int32) for _ in range(size)]


def test_a_group_shares_its_prompt_where_that_is_faster():
    rows = [*group_of(8, 300, 900, 0), *group_of(8, 300, 900, 1)]
    np.random.default_rng(0).shuffle(rows)
    [micros] = over_ranks(rows, 4096, 1)
    assert [computed(rows, micro) for micro in micros] == [3900] * 4  # four rows of a group each
    two = over_ranks(rows, 8192, 2)
    assert [computed(rows, micro) for [micro] in two] == [7500] * 2  # a group for each rank
    assert [len(micro) for [micro] in over_ranks(rows[:1] * 4, 8192, 4)] == [1] * 4  # nobody waits


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 300), st.integers(1, 5))
def test_without_common_beginnings_nothing_is_empty_but_for_want_of_rows(lengths, budget, ranks):
    plan = over_ranks(distinct(lengths), budget, ranks)
    if len(lengths) >= ranks * len(plan[0]):
        assert all(batch for batches in plan for batch in batches)


def test_a_model_that_reads_one_row_at_a_time_gets_no_more():
    assert over_ranks(distinct([9, 8, 7]), 1, 1) == [[[0], [1], [2]]]


def distinct(lengths):
    """Rows of these lengths that have nothing in common."""
    return [np.full(length, number, np.int32) for number, length in enumerate(lengths)]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(24, 100), st.integers(0, 50))
def test_a_plan_trains_every_sample_once(count, ranks, mini_batches, budget, seed):
    samples = random_samples(count, seed)
    learner = Learner(ranks=ranks, mini_batches=mini_batches, micro_batch_tokens=budget)
    plan = plan_updates("policy", samples, replace(Config(), learner=learner), 1.0)
    trained = [sample for work in plan.work for micros in work for micro in micros for sample in micro]
    assert sorted(map(id, trained)) == sorted(map(id, samples))
    # How samples are spread over ranks changes neither the mini-batches nor the scales of their sums.
    alone = replace(Config(), learner=replace(learner, ranks=1))
    one = plan_updates("policy", samples, alone, 1.0)
    assert plan.scales == one.scales and plan.tokens == one.tokens and plan.denominator == one.denominator
    for step in range(mini_batches):
        by_rank = [sample for work in plan.work for micro in work[step] for sample in micro]
        together = [sample for micro in one.work[0][step] for sample in micro]
        assert sorted(map(id, by_rank)) == sorted(map(id, together))


def turns_of_a_step(seed):
    """Lengths of 16 × 8 trajectories' turns: 5 to 50 turns, each a sample of 500 to 8,000 tokens."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 51, 16 * 8)
    return np.clip(rng.lognormal(np.log(1500), 0.6, counts.sum()), 500, 8000).astype(int).tolist()


def idle(lengths, ranks, mini_batches, budget, together):
    """Share of the ranks' time in which they wait for the slowest one, if time is tokens.

    Args:
        together: whether ranks wait for each other after each micro-batch, as in ZeRO 3.
    """
    busy = longest = 0.0
    for start in range(mini_batches):
        part = lengths[start::mini_batches]
        costs = np.array(
            [
                [sum(part[i] for i in micro) for micro in micros]
                for micros in over_ranks(distinct(part), budget, ranks)
            ]
        )
        busy += costs.sum() / ranks
        longest += costs.max(axis=0).sum() if together else costs.sum(axis=1).max()
    return 1 - busy / longest


@pytest.mark.parametrize(
    ("ranks", "mini_batches", "budget", "bound", "bound_together"),
    [
        (1, 1, 16384, 0.0, 0.0),
        (2, 2, 16384, 0.01, 0.01),
        (8, 4, 16384, 0.01, 0.02),
        # Some 3,500 samples are 12 for each rank and mini-batch, in two micro-batches.
        (24, 12, 8192, 0.02, 0.03),
        (24, 12, 16384, 0.02, 0.02),
        (24, 12, 24576, 0.02, 0.02),
    ],
)
def test_ranks_hardly_wait_for_each_other(ranks, mini_batches, budget, bound, bound_together):
    lengths = turns_of_a_step(seed=0)
    assert len(lengths) > 3000
    assert idle(lengths, ranks, mini_batches, budget, together=False) <= bound
    assert idle(lengths, ranks, mini_batches, budget, together=True) <= bound_together


def test_work_is_shared_rather_than_idled():
    assert over_ranks(distinct([10] * 8), 1000, 2) == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]
    assert over_ranks(distinct([10]), 1000, 2) == [[[0]], [[]]]


@given(st.integers(1, 20), st.integers(1, 6))
def test_mini_batches_hold_every_sample_once_and_none_is_empty(count, parts):
    samples = random_samples(count)
    made = split(samples, parts)
    assert len(made) == min(count, parts) and all(made)
    assert sorted(id(sample) for part in made for sample in part) == sorted(id(sample) for sample in samples)


@given(st.integers(1, 12), st.integers(0, 100))
def test_a_collated_token_is_where_its_sample_has_it(count, seed):
    samples = random_samples(count, seed)
    batch = collate(samples)
    place = 0
    for index, sample in enumerate(samples):
        for number, position in enumerate(sample.positions):
            at = batch.places[place]
            assert batch.rows[place] == index and batch.packed.positions[at] == position - 1
            assert batch.packed.ids[at] == sample.ids[position - 1]
            assert batch.targets[place] == sample.ids[position]
            assert batch.advantages[place] == sample.advantages[number]
            assert batch.rollout[place] == sample.rollout_logprobs[number]
            np.testing.assert_equal(batch.teacher[place].item(), float(sample.teacher_logprobs[number]))
            assert batch.reference[place] == sample.reference_logprobs[number]
            place += 1
    assert place == len(batch.targets) == len(batch.rows) == len(batch.places)


def test_samples_without_a_reference_have_none():
    with_one, without = random_samples(1)[0], replace(random_samples(1)[0], reference_logprobs=None)
    known = ~torch.isnan(collate([with_one, without]).reference)
    assert known.tolist() == [True] * len(with_one.positions) + [False] * len(without.positions)


def test_no_samples_give_a_batch_that_runs():
    batch = collate([])
    assert batch.packed.ids.shape == (2,) and len(batch.targets) == len(batch.advantages) == 0
    assert batch.rows.dtype == torch.int64 and batch.teacher.dtype == torch.float32
