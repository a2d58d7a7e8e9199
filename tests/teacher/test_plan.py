"""Every request is scored once, within the budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.rollout.types import Span
from hindsight.teacher import plan
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.plan import PADDING, BudgetError, lay_out, plan_batches, plan_forwards, tokens_read


def request(trajectory, sequence, cut, tail, span=1):
    ids = np.arange(1000, 1000 + tail, dtype=np.int32)
    return ScoreRequest(trajectory, 0, sequence, cut, ids, Span(tail - span, tail))


some_requests = st.lists(
    st.builds(request, st.integers(0, 3), st.integers(0, 2), st.integers(1, 40), st.integers(2, 20)),
    max_size=30,
)


@given(some_requests, st.integers(60, 300))
def test_plan_scores_each_request_once_within_the_budget(requests, budget):
    forwards = plan_forwards(requests, budget)
    trees = [tree for forward in forwards for tree in forward]
    assert sorted(index for tree in trees for index in tree.requests) == list(range(len(requests)))
    for tree in trees:
        mine = [requests[index] for index in tree.requests]
        assert {(one.trajectory, one.sequence) for one in mine} == {(tree.trajectory, tree.sequence)}
        assert tree.trunk == max(one.cut for one in mine)
        assert tree.tokens == tree.trunk + sum(len(one.tail) for one in mine)
    for forward in forwards:
        longest, real = max(tree.tokens for tree in forward), sum(tree.tokens for tree in forward)
        assert len(forward) * longest <= budget
        assert real >= (1 - PADDING) * len(forward) * longest


def test_requests_of_a_sequence_share_one_trunk_where_they_fit():
    requests = [request(0, 0, cut, 10) for cut in (30, 10, 20)]
    ((tree,),) = plan_forwards(requests, 100)
    assert tree.requests == (1, 2, 0)
    assert tree.tokens == tokens_read(requests, 100) == 30 + 3 * 10  # one by one: 90


def test_too_large_a_tree_is_split_and_early_branches_need_little_trunk():
    requests = [request(0, 0, cut, 10) for cut in (30, 10, 20)]
    trees = [tree for forward in plan_forwards(requests, 40) for tree in forward]
    assert [(tree.trunk, tree.requests) for tree in trees] == [(20, (1, 2)), (30, (0,))]
    assert tokens_read(requests, 40) == (20 + 2 * 10) + (30 + 10)


def test_equal_rows_share_a_forward():
    requests = [request(index, 0, 20, 5) for index in range(4)]
    assert [len(forward) for forward in plan_forwards(requests, 75)] == [3, 1]


def test_request_over_the_budget_names_the_key():
    with pytest.raises(BudgetError, match=r"teacher\.batch_tokens"):
        plan_forwards([request(0, 0, 50, 20)], 64)


def test_span_without_a_token_before_it_is_refused():
    with pytest.raises(ValueError, match="positions"):
        plan_forwards([request(0, 0, 5, 3, span=3)], 64)


@given(some_requests.filter(bool), st.integers(1, 60))
def test_runs_hold_each_request_once_and_need_ever_less_of_the_trunk(requests, size):
    for trees in plan_forwards(requests, 300):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "TAIL_TOKENS", size)
            batches = plan_batches(trees, requests)
        for position, tree in enumerate(trees):
            parts = [run.parts[position] for run in batches]
            assert [index for part in reversed(parts) for index in part] == list(tree.requests)
            assert all(len(part) < 2 or sum(len(requests[i].tail) for i in part) <= size for part in parts)
        assert batches[0].seen == max(tree.trunk for tree in trees)
        assert all(later.seen <= run.seen for run, later in pairwise(batches))
        for run in batches:
            assert all(requests[index].cut <= run.seen for part in run.parts for index in part)


def test_layout_by_hand():
    others = np.array([[7, 8], [9, 10]], np.int32)
    first = replace(request(0, 0, 2, 3, span=2), candidates=others)
    second = replace(request(0, 0, 4, 2, span=1), candidates=others[:1])
    row = lay_out([first, second])
    assert row.ids.tolist() == [1000, 1001, 1002, 1000, 1001]
    assert row.positions.tolist() == [2, 3, 4, 4, 5]
    assert row.branch.tolist() == [1, 1, 1, 2, 2]
    assert row.seen.tolist() == [2, 2, 2, 4, 4]
    assert row.predictors.tolist() == [0, 1, 3]
    assert row.wanted.tolist() == [[1001, 7, 8], [1002, 9, 10], [1001, 7, 8]]
    assert row.sizes == (2, 1)
    assert lay_out([]).ids.shape == (0,) and lay_out([]).sizes == ()
