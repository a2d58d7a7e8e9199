"""Pack samples into micro-batches, and spread those over ranks. Every sample is used exactly once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hindsight.learner.samples import TrainingSample


def split(samples: Sequence[TrainingSample], parts: int) -> list[list[TrainingSample]]:
    """Return at most `parts` mini-batches, none empty; a group's samples are spread over all of them."""
    return [part for start in range(parts) if (part := list(samples[start::parts]))]


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return indices by micro-batch, longest first; sequences × longest one is within `budget` tokens.

    A sequence longer than the budget is a micro-batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def over_ranks(lengths: Sequence[int], budget: int, ranks: int) -> list[list[list[int]]]:
    """Return indices by rank and micro-batch; every rank has equally many, so collectives stay aligned.

    There are as few micro-batches as the budget allows, about equally heavy, heaviest first on each rank; a
    heavy one is paired with light ones. A rank gets an empty one only if there are too few sequences.
    """

    def cost(batch: list[int]) -> int:
        return len(batch) * max((lengths[i] for i in batch), default=0)

    each = -(-len(micro_batches(lengths, budget)) // ranks)
    batches = _even(lengths, budget, each * ranks)
    while len(batches) < each * ranks and any(len(batch) > 1 for batch in batches):
        heavy = max((batch for batch in batches if len(batch) > 1), key=cost)
        batches.remove(heavy)
        middle = len(heavy) // 2
        batches += [heavy[:middle], heavy[middle:]]
    batches += [[] for _ in range(each * ranks - len(batches))]
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    # Longest processing time first (Graham 1969), with a limit on how many each rank gets.
    for batch in sorted(batches, key=lambda batch: (-cost(batch), batch)):
        rank = min((rank for rank in range(ranks) if len(shares[rank]) < each), key=loads.__getitem__)
        shares[rank].append(batch)
        loads[rank] += cost(batch)
    return shares


def _even(lengths: Sequence[int], budget: int, count: int) -> list[list[int]]:
    """At most `count` micro-batches under the smallest budget that needs no more; `budget` needs no more."""
    budgets = range(min(budget, max(lengths, default=budget)), budget)
    fits = bisect_left(budgets, True, key=lambda smaller: len(micro_batches(lengths, smaller)) <= count)
    return micro_batches(lengths, budgets.start + fits)


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right. B rows of L tokens, P tokens with a loss over all rows."""

    ids: torch.Tensor  # (B, L) int64
    rows: torch.Tensor  # (P,) int64, row of each token with a loss
    cols: torch.Tensor  # (P,) int64, position whose logits predict it: the one before
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
    ids = np.zeros((max(1, len(samples)), max((len(one.ids) for one in samples), default=2)), dtype=np.int64)
    for index, sample in enumerate(samples):
        ids[index, : len(sample.ids)] = sample.ids
    rows = np.repeat(np.arange(len(samples)), [len(one.positions) for one in samples]).astype(np.int64)
    positions = np.concatenate([np.zeros(0, np.int64), *(one.positions for one in samples)])
    return Batch(
        ids=torch.from_numpy(ids),
        rows=torch.from_numpy(rows),
        cols=torch.from_numpy(positions - 1),
        targets=torch.from_numpy(ids[rows, positions]),
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


def _column(samples: Sequence[TrainingSample], name: str) -> torch.Tensor:
    """(P,) float32; NaN for samples without the column."""
    held = [(getattr(sample, name), len(sample.positions)) for sample in samples]
    parts = [np.full(size, np.nan) if column is None else column for column, size in held]
    return torch.from_numpy(np.concatenate([np.zeros(0), *parts]).astype(np.float32))


def _wide(samples: Sequence[TrainingSample], name: str, dtype: type) -> torch.Tensor:
    """(P, k); k = 0 for samples without the column."""
    given = [column for sample in samples if (column := getattr(sample, name)) is not None]
    size = sum(len(sample.positions) for sample in samples)
    return torch.from_numpy(np.concatenate(given).astype(dtype) if given else np.zeros((size, 0), dtype))
