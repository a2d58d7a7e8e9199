"""Attention on CPUs by matrix products, for bfloat16: the learner's and the teacher's.

There, PyTorch's `scaled_dot_product_attention` takes two to three times as long (docs/performance.md).
Blocks of queries bound the scores, and the backward pass computes them again, so memory grows with the
tokens and not with their square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAME = "hindsight_by_products"  # of `attend`, in transformers' attention interface
BLOCK = 256  # queries whose scores are in memory at once


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


def use_products(lm: Any) -> None:
    """Let a transformers model that only scores attend by matrix products."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    lm.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention without gradients; see `transformers.AttentionInterface`.

    Args:
        query: (B, heads, n, D). key, value: (B, fewer or equally many heads, L, D), L >= n.
        mask: (B, 1, n, L) bool, query by key; None: as in `causal_attention`.

    Returns:
        (B, n, heads, D).
    """
    batch, groups = key.shape[:2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.reshape(batch * groups, -1, *query.shape[2:])
    made = _attention(grouped, key.flatten(0, 1), value.flatten(0, 1), scale, None if mask is None else ~mask)
    return made.view(query.shape).transpose(1, 2).contiguous(), None


class _Attention(torch.autograd.Function):
    """On (groups, heads of a group, n, D) queries."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return _attention(query, key, value, scale)

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


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    hidden: torch.Tensor | None = None,
) -> torch.Tensor:
    made = torch.empty_like(query)
    for rows, seen, _, probs in _blocks(query, key, scale, hidden):
        made[:, :, rows] = torch.bmm(probs, value[:, seen]).view(made[:, :, rows].shape)
    return made


def _blocks(
    query: torch.Tensor, key: torch.Tensor, scale: float, hidden: torch.Tensor | None = None
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield for each block of queries: their positions, those of the keys that they see, the scaled queries
    as (groups, R, D) and their probabilities as (groups, R, keys); R counts the queries of a group's heads.

    Args:
        hidden: (B, 1, n, L) bool, the keys that a query does not see, for groups of B batches; None: those
            after it.
    """
    groups, heads, count, size = query.shape
    before = key.shape[1] - count
    for start in range(0, count, BLOCK):
        rows = slice(start, min(count, start + BLOCK))
        seen = slice(0, before + rows.stop if hidden is None else key.shape[1])
        own = rows.stop - rows.start
        scaled = (query[:, :, rows] * scale).reshape(groups, heads * own, size)
        scores = torch.bmm(scaled, key[:, seen].transpose(1, 2)).view(groups, heads, own, -1)
        if hidden is None:
            future = torch.full((own, own), float("-inf"), dtype=scores.dtype).triu_(1)
            scores[..., before + start :] += future
        else:
            scores.view(len(hidden), -1, own, key.shape[1]).masked_fill_(hidden[:, :, rows], float("-inf"))
        yield rows, seen, scaled, scores.softmax(dim=-1).view(groups, heads * own, -1)
