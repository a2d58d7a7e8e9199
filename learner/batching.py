"""Put samples into micro-batches, and spread those over ranks. Every sample is used exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from itertools import pairwise

import numpy as np
import torch

from hindsight.learner.packing import PackedRows, common, pack_rows
from hindsight.learner.samples import TrainingSample, joined


def split(samples: Sequence[TrainingSample], parts: int) -> list[list[TrainingSample]]:
    """Return at most `parts` mini-batches, none empty; a group's samples are spread over all of them."""
    return [part for start in range(parts) if (part := list(samples[start::parts]))]


def over_ranks(rows: Sequence[np.ndarray], budget: int, ranks: int) -> list[list[list[int]]]:
    """Return indices by rank and micro-batch; every rank has equally many, so collectives stay aligned.

    A micro-batch computes at most `budget` tokens, or is one row that is longer. What rows begin with in
    common is computed once per micro-batch, so rows that begin alike are kept together in runs, as long as
    that makes the slowest rank faster. Without common beginnings, a micro-batch is empty only if there are
    too few rows.

    Args:
        rows: the ids of each.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index].tobytes())  # those that begin alike
    lengths = [len(rows[index]) for index in order]
    shared = [0, *(common(rows[one], rows[other]) for one, other in pairwise(order))][: len(rows)]
    longest = [1 << power for power in range(len(rows).bit_length())] if any(shared) else [1]
    spreads = [_spread(_runs(lengths, shared, budget, most), budget, ranks) for most in longest]
    best = min(spreads, key=lambda spread: spread.cost)
    return [
        [[order[place] for run in sorted(runs) for place in range(*run)] for runs in micros]
        for micros in best.runs
    ]


RowRange = tuple[int, int]  # the first of some rows in their order, and the one after the last


@dataclass(frozen=True)
class Spread:
    """Runs by rank and micro-batch."""

    runs: list[list[list[RowRange]]]
    cost: int  # tokens, if ranks wait for each other after each micro-batch


def _runs(lengths: Sequence[int], shared: Sequence[int], budget: int, most: int) -> dict[RowRange, int]:
    """Cut rows into runs of at most `most` rows and `budget` tokens; return the tokens of each."""
    runs: dict[RowRange, int] = {}
    first = tokens = 0
    for place, (length, same) in enumerate(zip(lengths, shared, strict=True)):
        if place > first and (place - first == most or tokens + length - same > budget):
            runs[first, place] = tokens
            first, tokens = place, 0
        tokens += length - same if place > first else length
    if lengths:
        runs[first, len(lengths)] = tokens
    return runs


def _spread(costs: dict[RowRange, int], budget: int, ranks: int) -> Spread:
    """Put runs into about equally heavy micro-batches, as few as fit into the budget.

    Each run, heaviest first, goes into the lightest micro-batch (longest processing time first, Graham 1969).
    """
    heaviest = sorted(costs, key=lambda run: (-costs[run], run))
    each = max(1, -(-sum(min(cost, budget) for cost in costs.values()) // (budget * ranks)))
    while (micros := _fill(heaviest, costs, budget, each * ranks)) is None:
        each += 1
    shares: list[list[list[RowRange]]] = [[] for _ in range(ranks)]
    loads: list[list[int]] = [[] for _ in range(ranks)]
    for load, runs in sorted(micros, key=lambda micro: (-micro[0], micro[1])):
        rank = min((rank for rank in range(ranks) if len(shares[rank]) < each), key=lambda r: sum(loads[r]))
        shares[rank].append(runs)
        loads[rank].append(load)
    return Spread(shares, sum(max(column) for column in zip(*loads, strict=True)))


def _fill(
    heaviest: Sequence[RowRange], costs: dict[RowRange, int], budget: int, count: int
) -> list[tuple[int, list[RowRange]]] | None:
    """`count` micro-batches with their tokens; None if a run fits into none of them."""
    micros: list[tuple[int, int, list[RowRange]]] = [(0, number, []) for number in range(count)]
    for run in heaviest:
        load, number, held = micros[0]  # the lightest
        if held and load + costs[run] > budget:
            return None
        heapreplace(micros, (load + costs[run], number, [*held, run]))
    return [(load, held) for load, _, held in micros]


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B rows in one sequence of N tokens; P tokens with a loss over all rows."""

    packed: PackedRows  # the rows
    rows: torch.Tensor  # (P,) int64, row of each token with a loss
    places: torch.Tensor  # (P,) int64, where in the sequence the token before it is, which predicts it
    targets: torch.Tensor  # (P,) int64, the token
    advantages: torch.Tensor  # (P,) float32
    rollout: torch.Tensor  # (P,) float32
    lags: torch.Tensor  # (P,) float32, whole numbers; NaN where not computed
    teacher: torch.Tensor  # (P,) float32, NaN where not scored
    reference: torch.Tensor  # (P,) float32, NaN where not computed
    candidates: torch.Tensor  # (P, k) int64, other tokens at the same positions; k may be 0
    teacher_candidates: torch.Tensor  # (P, k) float32, the teacher's log-probs of those
    values: torch.Tensor  # (P,) float32, NaN where not computed
    returns: torch.Tensor  # (P,) float32, NaN where not computed

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on `device`."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def collate(samples: Sequence[TrainingSample]) -> Batch:
    """Make tensors of samples; without samples, a batch of P = 0 that forward and backward passes accept."""
    packed, places = pack_rows([one.ids for one in samples] or [np.zeros(2, np.int32)])
    rows = np.repeat(np.arange(len(samples)), [len(one.positions) for one in samples])
    predictors = [place[one.positions - 1] for one, place in zip(samples, places, strict=False)]
    targets = [one.ids[one.positions] for one in samples]
    return Batch(
        packed=packed,
        rows=torch.from_numpy(rows.astype(np.int64)),
        places=_integers(predictors),
        targets=_integers(targets),
        advantages=_column(samples, "advantages"),
        rollout=_column(samples, "rollout_logprobs"),
        lags=_column(samples, "lags"),
        teacher=_column(samples, "teacher_logprobs"),
        reference=_column(samples, "reference_logprobs"),
        candidates=_wide(samples, "candidates", np.int64),
        teacher_candidates=_wide(samples, "teacher_candidates", np.float32),
        values=_column(samples, "values"),
        returns=_column(samples, "returns"),
    )


def _integers(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0), *parts]).astype(np.int64))


def _column(samples: Sequence[TrainingSample], name: str) -> torch.Tensor:
    return torch.from_numpy(joined(samples, name))


def _wide(samples: Sequence[TrainingSample], name: str, dtype: type) -> torch.Tensor:
    """(P, k); k = 0 for samples without the column."""
    given = [column for sample in samples if (column := getattr(sample, name)) is not None]
    size = sum(len(sample.positions) for sample in samples)
    return torch.from_numpy(np.concatenate(given).astype(dtype) if given else np.zeros((size, 0), dtype))
