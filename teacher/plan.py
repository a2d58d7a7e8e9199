"""Which requests share a forward: trees over shared prefixes, in padded rows under a token budget. Pure.

A *tree* is a trunk, which is the front of one sequence, and the tails of requests on that sequence. A tail
sees the trunk up to its cut and itself, so each request is scored as if it were alone while the trunk is
computed once:

    trunk 0 1 2 3 4 5 6 7 | tail of cut 3: 3 4 5 | tail of cut 7: 7 8 9        (positions)

Tails go through the model in *runs*, those of the latest cuts first: each run sees no more of the trunk than
the one before, so its keys and values are cropped on the way and never copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hindsight.teacher.contexts import ScoreRequest

PADDING = 0.1  # most of a forward's tokens that may be padding
RUN = 512  # tail tokens of one run: a tail's queries meet the keys of all tails in its run


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
class Run:
    """Tails of several trees that go through the model at once."""

    parts: tuple[tuple[int, ...], ...]  # per tree, indices into the list of requests; may be empty
    seen: int  # trunk tokens that this run or a later one sees


@dataclass(frozen=True)
class Tails:
    """One tree's part of a run, as a row of S tokens with W wanted positions."""

    ids: np.ndarray  # (S,) int32
    positions: np.ndarray  # (S,) int32, position of each token in its own context
    branch: np.ndarray  # (S,) int32, the tail that it is of: 1, 2, ...
    seen: np.ndarray  # (S,) int32, how many trunk tokens it sees
    predictors: np.ndarray  # (W,) int32, where the logits of each wanted token are
    wanted: np.ndarray  # (W, 1 + k) int32, the token and k others wanted at the same position
    sizes: tuple[int, ...]  # wanted positions per request


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


def plan_runs(trees: Sequence[Tree], requests: Sequence[ScoreRequest]) -> list[Run]:
    """The runs of a forward's trees, in the order in which the model reads them."""
    split = [_split(tree, requests) for tree in trees]
    runs: list[Run] = []
    seen = 0
    for turn in range(max(map(len, split))):
        parts = tuple(own[turn] if turn < len(own) else () for own in split)
        seen = max(seen, *(requests[part[-1]].cut for part in parts if part))
        runs.append(Run(parts, seen))
    return runs[::-1]


def lay_out(requests: Sequence[ScoreRequest]) -> Tails:
    """The row of these requests' tails; of none, a row of no tokens."""
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
    """The tree's requests in parts of at most `RUN` tail tokens, or of one request."""
    parts: list[tuple[int, ...]] = []
    tokens = 0
    for index in tree.requests:
        tokens += len(requests[index].tail)
        if not parts or tokens > RUN:
            parts.append(())
            tokens = len(requests[index].tail)
        parts[-1] += (index,)
    return parts


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
