"""Attention by matrix products gives what PyTorch's own gives."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hindsight.learner import packing
from hindsight.teacher import cpu_attention
from hindsight.teacher.cpu_attention import attend, causal_attention


def reference(query, key, value, scale):
    """Attention of the last queries, with a mask and one key per query head."""
    key, value = (one.repeat_interleave(len(query) // len(one), dim=0) for one in (key, value))
    count, length = query.shape[1], key.shape[1]
    seen = torch.ones(count, length, dtype=torch.bool).tril(length - count)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


@pytest.mark.parametrize(("count", "length"), [(0, 5), (1, 1), (4, 4), (11, 11), (1, 9), (4, 9), (11, 30)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_values_and_gradients_are_those_of_torch(count, length, heads, monkeypatch):
    monkeypatch.setattr(cpu_attention, "BLOCK", 4)
    torch.manual_seed(0)
    sizes = ((heads[0], count), (heads[1], length), (heads[1], length))
    inputs = [torch.randn(*size, 8, dtype=torch.float64, requires_grad=True) for size in sizes]
    made = []
    for attention in (causal_attention, reference):
        found = attention(*inputs, 0.3)
        made.append((found.detach(), *torch.autograd.grad(found.sin().sum(), inputs)))
    for own, other in zip(*made, strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize(("count", "length"), [(1, 1), (4, 4), (3, 11), (11, 30)])
@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_is_attended_as_by_torch(count, length, masked, monkeypatch):
    monkeypatch.setattr(cpu_attention, "BLOCK", 4)
    torch.manual_seed(0)
    query = torch.randn(2, 6, count, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, length, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, count, length) < 0.5
    mask[..., 0] = True  # a query sees at least one key
    if not masked:
        mask = torch.ones(2, 1, count, length, dtype=torch.bool).tril(length - count)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    found, _ = attend(torch.nn.Identity(), query, key, value, mask if masked else None, scaling=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_packed_rows_in_bfloat16_are_read_by_products(monkeypatch):
    """The second row shares most tokens, the third all of them."""
    second = [*range(30), 99]
    rows, _ = packing.pack_rows([np.array(row) for row in (range(40), second, second)])
    assert rows.shared == (0, 30, 31)
    torch.manual_seed(0)
    inputs = [torch.randn(1, heads, len(rows.ids), 16) for heads in (4, 2, 2)]
    calls = []

    def counted(*given):
        calls.append(given)
        return causal_attention(*given)

    monkeypatch.setattr(packing, "causal_attention", counted)
    made = []
    for kind in (torch.float32, torch.bfloat16):
        given = [one.to(kind).requires_grad_() for one in inputs]
        found, _ = packing.attend_by_row(torch.nn.Identity(), *given, None, packed_rows=rows)
        made.append((found.detach(), *torch.autograd.grad(found.float().sin().sum(), given)))
    assert [call[0].shape[1] for call in calls] == [40, 1, 0]  # in bfloat16, of own tokens
    for exact, rounded in zip(*made, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert float((rounded.float() - exact).norm() / exact.norm()) < 0.02
