"""Every request is scored once, within the budget, and teacher weights follow their rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.types import Span
from teacher.contexts import ScoreRequest
from teacher.plan import PADDING, BudgetError, lay_out, plan_forwards, tokens_read
from teacher.weights import copied_at, refresh_due


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


def test_layout_by_hand():
    requests = [request(0, 0, 2, 3, span=2), request(0, 0, 4, 2, span=1)]
    ((tree,),) = plan_forwards(requests, 64)
    row = lay_out(tree, requests, np.arange(9, dtype=np.int32))
    assert row.ids.tolist() == [0, 1, 2, 3, 1000, 1001, 1002, 1000, 1001]
    assert row.positions.tolist() == [0, 1, 2, 3, 2, 3, 4, 4, 5]
    assert row.branch.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert row.seen.tolist() == [1, 2, 3, 4, 2, 2, 2, 4, 4]
    assert row.predictors.tolist() == [4, 5, 7]
    assert row.targets.tolist() == [1001, 1002, 1001]
    assert row.sizes == (2, 1)


@pytest.mark.parametrize(("every", "due"), [(0, [0]), (1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6])])
def test_refresh_rule(every, due):
    assert [step for step in range(7) if refresh_due(step, every)] == due
    for step in range(7):
        assert copied_at(step, every) == max(past for past in due if past <= step)
