"""Which requests share a forward: trees over shared prefixes, in padded rows under a token budget. Pure.

A *tree* is one row of tokens: a trunk, which is the front of one sequence, and behind it the tails of
requests on that sequence. A tail sees the trunk up to its cut and itself, so each request is scored as if it
were alone while the trunk is computed once:

    trunk 0 1 2 3 4 5 6 7 | tail of cut 3: 3 4 5 | tail of cut 7: 7 8 9        (positions)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from teacher.contexts import ScoreRequest

PADDING = 0.1  # most of a forward's tokens that may be padding


class BudgetError(ValueError):
    """One request alone is longer than the budget of a forward."""


@dataclass(frozen=True)
class Tree:
    """Requests on one sequence that are scored together."""

    trajectory: int
    sequence: int
    trunk: int  # tokens taken from the front of the sequence: the largest cut
    requests: tuple[int, ...]  # indices into the list of requests, by rising cut
    tokens: int  # trunk and tails


@dataclass(frozen=True)
class TreeTokens:
    """One tree laid out as a row of L tokens with W wanted log-probs."""

    ids: np.ndarray  # (L,) int32
    positions: np.ndarray  # (L,) int32, position of each token in its own context
    branch: np.ndarray  # (L,) int32, 0 for the trunk, then 1, 2, ... for the tails
    seen: np.ndarray  # (L,) int32, how many trunk tokens each token sees
    predictors: np.ndarray  # (W,) int32, where the logits of each wanted token are
    targets: np.ndarray  # (W,) int32, the wanted tokens
    candidates: np.ndarray  # (W, k) int32, others wanted at the same positions; k may be 0
    sizes: tuple[int, ...]  # wanted tokens per request, in the order of Tree.requests


def plan_forwards(requests: Sequence[ScoreRequest], budget: int) -> list[list[Tree]]:
    """Split requests into forwards; each forward is a list of trees, padded to its longest.

    Every request is in exactly one tree, and rows x longest row of a forward stays within `budget` tokens.

    Raises:
        BudgetError: a request alone is over the budget.
    """
    forwards: list[list[Tree]] = []
    width = real = 0
    for tree in sorted(_grow_trees(requests, budget), key=lambda tree: -tree.tokens):
        rows = len(forwards[-1]) + 1 if forwards else 0
        fits = rows * width <= budget and real + tree.tokens >= (1 - PADDING) * rows * width
        if not forwards or not fits:
            forwards.append([])
            width, real = tree.tokens, 0
        forwards[-1].append(tree)
        real += tree.tokens
    return forwards


def tokens_read(requests: Sequence[ScoreRequest], budget: int) -> int:
    """Tokens of contexts and spans in all forwards: what trees share once each, padding left out.

    Raises:
        BudgetError: a request alone is over the budget.
    """
    return sum(tree.tokens for tree in _grow_trees(requests, budget))


def lay_out(tree: Tree, requests: Sequence[ScoreRequest], ids: np.ndarray) -> TreeTokens:
    """The row of a tree.

    Args:
        requests: the list that the tree's indices point into.
        ids: the whole sequence that the tree stands on.
    """
    trunk = np.arange(tree.trunk, dtype=np.int32)
    tokens, positions, branch, seen = [ids[: tree.trunk]], [trunk], [np.zeros_like(trunk)], [trunk + 1]
    predictors, targets, candidates = [], [], []
    start = tree.trunk
    for number, index in enumerate(tree.requests, start=1):
        request = requests[index]
        steps = np.arange(len(request.tail), dtype=np.int32)
        tokens.append(request.tail)
        positions.append(request.cut + steps)
        branch.append(np.full_like(steps, number))
        seen.append(np.full_like(steps, request.cut))
        predictors.append(start + steps[request.span.start - 1 : request.span.end - 1])
        targets.append(request.tail[request.span.start : request.span.end])
        wanted = request.candidates
        candidates.append(np.zeros((len(request.span), 0), np.int32) if wanted is None else wanted)
        start += len(steps)
    return TreeTokens(
        ids=np.concatenate(tokens),
        positions=np.concatenate(positions),
        branch=np.concatenate(branch),
        seen=np.concatenate(seen),
        predictors=np.concatenate(predictors),
        targets=np.concatenate(targets),
        candidates=np.concatenate(candidates),
        sizes=tuple(map(len, targets)),
    )


def _grow_trees(requests: Sequence[ScoreRequest], budget: int) -> list[Tree]:
    """Trees of at most `budget` tokens, each on one sequence; a later tree computes its trunk again."""
    on_sequence: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        _check(request, budget)
        on_sequence[request.trajectory, request.sequence].append(index)
    trees = []
    for (trajectory, sequence), indices in on_sequence.items():
        branches: list[int] = []
        tails = 0
        for index in sorted(indices, key=lambda index: requests[index].cut):
            request = requests[index]
            if branches and request.cut + tails + len(request.tail) > budget:
                trees.append(_tree(trajectory, sequence, branches, requests))
                branches, tails = [], 0
            branches.append(index)
            tails += len(request.tail)
        trees.append(_tree(trajectory, sequence, branches, requests))
    return trees


def _tree(trajectory: int, sequence: int, branches: list[int], requests: Sequence[ScoreRequest]) -> Tree:
    trunk = requests[branches[-1]].cut
    tokens = trunk + sum(len(requests[index].tail) for index in branches)
    return Tree(trajectory, sequence, trunk, tuple(branches), tokens)


def _check(request: ScoreRequest, budget: int) -> None:
    where = f"trajectory {request.trajectory}, turn {request.turn}"
    length = request.cut + len(request.tail)
    if length > budget:
        raise BudgetError(f"{where}: a request of {length} tokens; raise teacher.batch_tokens ({budget})")
    if not 0 < request.span.start < request.span.end <= len(request.tail):
        raise ValueError(f"{where}: positions {request.span} of a tail of {len(request.tail)} tokens")
