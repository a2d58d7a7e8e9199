"""Causal attention on CPUs by matrix products, for bfloat16.

There, PyTorch's `scaled_dot_product_attention` takes two to three times as long (docs/performance.md).
Blocks of queries bound the scores, and the backward pass computes them again, so memory grows with the
tokens and not with their square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

BLOCK = 256  # queries whose scores are held at once


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of the last n of L tokens to themselves and the tokens before them.

    Args:
        query: (heads, n, D). key, value: (fewer or equally many heads, L, D), L >= n.
        scale: multiplies the scores.

    Returns:
        (heads, n, D).
    """
    groups = len(key)
    grouped = query.reshape(groups, len(query) // groups, *query.shape[1:])
    made: torch.Tensor = _Attention.apply(grouped, key, value, scale)
    return made.view(query.shape)


class _Attention(torch.autograd.Function):
    """On (groups, heads of a group, n, D) queries."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        made = torch.empty_like(query)
        for rows, seen, _, probs in _blocks(query, key, scale):
            made[:, :, rows] = torch.bmm(probs, value[:, seen]).view(made[:, :, rows].shape)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value = ctx.saved_tensors
        d_query = torch.empty_like(query)
        # Many blocks add to them, which would round their sums away in bfloat16.
        wide = torch.promote_types(key.dtype, torch.float32)
        d_key, d_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        for rows, seen, scaled, probs in _blocks(query, key, ctx.scale):
            flat = up[:, :, rows].reshape(scaled.shape)
            d_value[:, seen] += torch.bmm(probs.transpose(1, 2), flat)
            d_scores = torch.bmm(flat, value[:, seen].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_scores, probs, -1, probs.dtype)
            d_query[:, :, rows] = torch.bmm(d_scores, key[:, seen]).view(d_query[:, :, rows].shape)
            d_key[:, seen] += torch.bmm(d_scores.transpose(1, 2), scaled)
        return d_query.mul_(ctx.scale), d_key.to(key.dtype), d_value.to(value.dtype), None


def _blocks(
    query: torch.Tensor, key: torch.Tensor, scale: float
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield for each block of queries: their positions, those of the keys that they see, the scaled queries
    as (groups, R, D) and their probabilities as (groups, R, keys); R counts the queries of a group's heads.
    """
    groups, heads, count, size = query.shape
    before = key.shape[1] - count
    for start in range(0, count, BLOCK):
        rows = slice(start, min(count, start + BLOCK))
        seen = slice(0, before + rows.stop)
        own = rows.stop - rows.start
        scaled = (query[:, :, rows] * scale).reshape(groups, heads * own, size)
        scores = torch.bmm(scaled, key[:, seen].transpose(1, 2)).view(groups, heads, own, -1)
        future = torch.full((own, own), float("-inf"), dtype=scores.dtype).triu_(1)
        scores[..., before + start :] += future
        yield rows, seen, scaled, scores.softmax(dim=-1).view(groups, heads * own, -1)
