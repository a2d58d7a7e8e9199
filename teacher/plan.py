"""Pack score requests into forward passes: trees over shared prefixes, padded, within a token budget. Pure.

A *tree* is a trunk (a prefix of one sequence) and the tails of requests on that sequence. A tail attends to
the trunk up to its cut and to itself, so its scores are the same as without the other tails. The trunk is
computed once:

    trunk 0 1 2 3 4 5 6 7 | tail of cut 3: 3 4 5 | tail of cut 7: 7 8 9        (positions)

Tails go through the model in *batches*, latest cuts first. Each batch attends to no more of the trunk than
the one before it, so the trunk's keys and values can be cropped in place and are never copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hindsight.teacher.contexts import ScoreRequest

PADDING = 0.1  # maximum fraction of padding in a forward pass
TAIL_TOKENS = 512  # tail tokens in one batch; attention cost grows with the tails in a batch


class BudgetError(ValueError):
    """A single request exceeds the token budget of a forward pass."""


@dataclass(frozen=True)
class Tree:
    """Requests on one sequence, scored together."""

    trajectory: int
    sequence: int
    trunk: int  # tokens taken from the front of the sequence: the largest cut
    requests: tuple[int, ...]  # indices into the list of requests, by increasing cut
    tokens: int  # of the trunk and the tails


@dataclass(frozen=True)
class TailBatch:
    """Tails of several trees that go through the model together."""

    parts: tuple[tuple[int, ...], ...]  # per tree, indices into the list of requests; may be empty
    seen: int  # trunk tokens used in this batch or a later one


@dataclass(frozen=True)
class Tails:
    """One tree's part of a batch: a row of S tokens with W positions to score."""

    ids: np.ndarray  # (S,) int32
    positions: np.ndarray  # (S,) int32, position of each token in its context
    branch: np.ndarray  # (S,) int32, number of the token's tail: 1, 2, ...
    seen: np.ndarray  # (S,) int32, number of trunk tokens that each token attends to
    predictors: np.ndarray  # (W,) int32, positions whose logits predict the tokens to score
    wanted: np.ndarray  # (W, 1 + k) int32, the token and k candidates at each position
    sizes: tuple[int, ...]  # number of scored positions per request


def plan_forwards(requests: Sequence[ScoreRequest], budget: int) -> list[list[Tree]]:
    """Split requests into forward passes. Each is a list of trees, padded to the longest one.

    Every request is in exactly one tree. A forward pass has at most `budget` tokens, including padding.

    Raises:
        BudgetError: a single request exceeds the budget.
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
    """Return the tokens of all forward passes, without padding. A shared prefix counts once per tree.

    Raises:
        BudgetError: a single request exceeds the budget.
    """
    return sum(tree.tokens for tree in _grow_trees(requests, budget))


def plan_batches(trees: Sequence[Tree], requests: Sequence[ScoreRequest]) -> list[TailBatch]:
    """Return the batches of a forward pass in the order in which they go through the model."""
    split = [_split(tree, requests) for tree in trees]
    batches: list[TailBatch] = []
    seen = 0
    for turn in range(max(map(len, split))):
        parts = tuple(own[turn] if turn < len(own) else () for own in split)
        seen = max(seen, *(requests[part[-1]].cut for part in parts if part))
        batches.append(TailBatch(parts, seen))
    return batches[::-1]


def lay_out(requests: Sequence[ScoreRequest]) -> Tails:
    """Lay out the tails of requests as one row; an empty row if there are none."""
    empty = np.zeros(0, np.int32)
    ids, positions, branch, seen, predictors = [empty], [empty], [empty], [empty], [empty]
    wanted = []
    start = 0
    for number, request in enumerate(requests, start=1):
        steps, span = np.arange(len(request.tail), dtype=np.int32), request.span
        ids.append(request.tail)
        positions.append(request.cut + steps)
        branch.append(np.full_like(steps, number))
        seen.append(np.full_like(steps, request.cut))
        predictors.append(start + steps[span.start - 1 : span.end - 1])
        tokens = request.tail[span.start : span.end, None]
        others = () if request.candidates is None else (request.candidates,)
        wanted.append(np.concatenate([tokens, *others], axis=1))
        start += len(steps)
    return Tails(
        ids=np.concatenate(ids),
        positions=np.concatenate(positions),
        branch=np.concatenate(branch),
        seen=np.concatenate(seen),
        predictors=np.concatenate(predictors),
        wanted=np.concatenate(wanted) if wanted else np.zeros((0, 1), np.int32),
        sizes=tuple(map(len, wanted)),
    )


def _split(tree: Tree, requests: Sequence[ScoreRequest]) -> list[tuple[int, ...]]:
    """Split a tree's requests into parts of at most `TAIL_TOKENS` tail tokens, or of a single request."""
    parts: list[tuple[int, ...]] = []
    tokens = 0
    for index in tree.requests:
        tokens += len(requests[index].tail)
        if not parts or tokens > TAIL_TOKENS:
            parts.append(())
            tokens = len(requests[index].tail)
        parts[-1] += (index,)
    return parts


def _grow_trees(requests: Sequence[ScoreRequest], budget: int) -> list[Tree]:
    """Group requests into trees of at most `budget` tokens. Each tree computes its own trunk."""
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
        raise BudgetError(f"{where}: {length} tokens exceed teacher.batch_tokens = {budget}: raise it")
    if not 0 < request.span.start < request.span.end <= len(request.tail):
        raise ValueError(f"{where}: invalid positions {request.span} in a tail of {len(request.tail)} tokens")
