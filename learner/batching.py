"""Rows into micro-batches, and micro-batches over ranks. No token is lost, no row is used twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hindsight.learner.rows import Row


def split(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """At most `parts` mini-batches, none empty; neighbors (a group's rows) are spread over all of them."""
    return [part for start in range(parts) if (part := list(rows[start::parts]))]


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices by micro-batch, longest first: (rows × longest row) stays within `budget` tokens.

    A row longer than the budget is a micro-batch of its own.
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
    """Indices by rank and micro-batch; every rank has equally many, so that collectives stay aligned.

    Where the count does not divide by `ranks`, the micro-batches with the most padded tokens are halved. Only
    when there are fewer rows than places does a rank get an empty micro-batch.
    """

    def cost(batch: list[int]) -> int:
        return len(batch) * max(lengths[i] for i in batch)

    batches = micro_batches(lengths, budget)
    while len(batches) % ranks and any(len(batch) > 1 for batch in batches):
        heavy = max((batch for batch in batches if len(batch) > 1), key=cost)
        batches.remove(heavy)
        middle = len(heavy) // 2
        batches += [heavy[:middle], heavy[middle:]]
    batches.sort(key=lambda batch: (-cost(batch), batch))
    batches += [[] for _ in range(-len(batches) % ranks)]
    return [batches[rank::ranks] for rank in range(ranks)]


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right. B rows of L tokens, P loss-bearing tokens over all rows."""

    ids: torch.Tensor  # (B, L) int64
    rows: torch.Tensor  # (P,) int64, row of each loss-bearing token
    cols: torch.Tensor  # (P,) int64, position whose logits predict it: the one before
    targets: torch.Tensor  # (P,) int64, the token
    advantages: torch.Tensor  # (P,) float32
    rollout: torch.Tensor  # (P,) float32
    teacher: torch.Tensor  # (P,) float32, NaN where not scored
    reference: torch.Tensor  # (P,) float32, NaN where not computed
    candidates: torch.Tensor  # (P, k) int64, other tokens at the same positions; k may be 0
    teacher_candidates: torch.Tensor  # (P, k) float32, the teacher's log-probs of those
    values: torch.Tensor  # (P,) float32, NaN where not computed
    returns: torch.Tensor  # (P,) float32, NaN where not computed

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def collate(rows: Sequence[Row]) -> Batch:
    """Tensors of some rows; no rows give a batch of P = 0 that a forward and a backward pass run through."""
    ids = np.zeros((max(1, len(rows)), max((len(row.ids) for row in rows), default=2)), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
    owners = np.repeat(np.arange(len(rows)), [len(row.positions) for row in rows]).astype(np.int64)
    positions = _joined([row.positions for row in rows], np.int64)
    return Batch(
        ids=torch.from_numpy(ids),
        rows=torch.from_numpy(owners),
        cols=torch.from_numpy(positions - 1),
        targets=torch.from_numpy(ids[owners, positions]),
        advantages=torch.from_numpy(_joined([row.advantages for row in rows], np.float32)),
        rollout=torch.from_numpy(_joined([row.rollout_logprobs for row in rows], np.float32)),
        teacher=torch.from_numpy(_joined([row.teacher_logprobs for row in rows], np.float32)),
        reference=_optional(rows, "reference_logprobs"),
        candidates=torch.from_numpy(_stacked([row.candidates for row in rows], len(owners), np.int64)),
        teacher_candidates=torch.from_numpy(
            _stacked([row.teacher_candidates for row in rows], len(owners), np.float32)
        ),
        values=_optional(rows, "values"),
        returns=_optional(rows, "returns"),
    )


def _optional(rows: Sequence[Row], name: str) -> torch.Tensor:
    """(P,) float32 of a field that rows may lack; NaN there."""
    held = [(getattr(row, name), len(row.positions)) for row in rows]
    return torch.from_numpy(
        _joined([np.full(size, np.nan) if array is None else array for array, size in held], np.float32)
    )


def _stacked(arrays: Sequence[np.ndarray | None], positions: int, dtype: type) -> np.ndarray:
    """(P, k) of all rows; k = 0 where they have none."""
    given = [array for array in arrays if array is not None]
    return np.concatenate(given).astype(dtype) if given else np.zeros((positions, 0), dtype)


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)
