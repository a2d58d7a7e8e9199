"""Packing: nothing lost, nothing twice, everything within its budget, ranks in step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import random_samples

from hindsight.learner.batching import collate, micro_batches, over_ranks, split

lengths_of = st.lists(st.integers(1, 100), min_size=1, max_size=40)


@given(lengths_of, st.integers(1, 300))
def test_micro_batches_hold_every_sample_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths_of, st.integers(1, 300), st.integers(1, 5))
def test_ranks_get_equally_many_and_lose_nothing(lengths, budget, ranks):
    plan = over_ranks(lengths, budget, ranks)
    assert len(plan) == ranks and len({len(batches) for batches in plan}) == 1
    flat = [batch for batches in plan for batch in batches]
    assert sorted(i for batch in flat for i in batch) == list(range(len(lengths)))
    for batch in flat:
        assert len(batch) <= 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    if len(lengths) >= ranks * len(plan[0]):
        assert all(flat)  # an empty micro-batch only where there are not enough samples


def test_work_is_shared_rather_than_idled():
    assert over_ranks([10] * 8, 1000, 2) == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert over_ranks([10], 1000, 2) == [[[0]], [[]]]


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
        np.testing.assert_array_equal(batch.ids[index, : len(sample.ids)], sample.ids)
        for number, position in enumerate(sample.positions):
            assert batch.rows[place] == index and batch.cols[place] == position - 1
            assert batch.targets[place] == sample.ids[position]
            assert batch.advantages[place] == sample.advantages[number]
            assert batch.rollout[place] == sample.rollout_logprobs[number]
            np.testing.assert_equal(batch.teacher[place].item(), float(sample.teacher_logprobs[number]))
            assert batch.reference[place] == sample.reference_logprobs[number]
            place += 1
    assert place == len(batch.targets) == len(batch.rows) == len(batch.cols)


def test_samples_without_a_reference_have_none():
    with_one, without = random_samples(1)[0], replace(random_samples(1)[0], reference_logprobs=None)
    known = ~torch.isnan(collate([with_one, without]).reference)
    assert known.tolist() == [True] * len(with_one.positions) + [False] * len(without.positions)


def test_no_samples_give_a_batch_that_runs():
    batch = collate([])
    assert batch.ids.shape == (1, 2) and len(batch.targets) == len(batch.advantages) == 0
    assert batch.rows.dtype == torch.int64 and batch.teacher.dtype == torch.float32
