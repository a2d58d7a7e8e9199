"""The flat buffer that weights travel in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from hindsight.rollout.weights import (
    ALIGNMENT,
    TensorMeta,
    checksum,
    meta_of,
    offsets,
    pack_tensors,
    unpack_tensors,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def make(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6))
def test_what_is_packed_comes_out_again(specs):
    named = [(f"t{i}", make(shape, dtype, i)) for i, (shape, dtype) in enumerate(specs)]
    flat, layout, _ = pack_tensors(named)
    assert flat.dtype == np.uint8
    assert flat.size == offsets(layout)[-1]
    assert all(start % ALIGNMENT == 0 for start in offsets(layout))
    flat.setflags(write=False)  # as it comes out of the object store
    out = list(unpack_tensors(flat, layout))
    assert [name for name, _ in out] == [name for name, _ in named]
    for (_, sent), (_, got) in zip(named, out, strict=True):
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent)


def test_unpacked_tensors_are_views():
    flat, layout, _ = pack_tensors([("a", torch.zeros(3)), ("b", torch.zeros(2))])
    flat[:] = 255
    assert all(torch.isnan(tensor).all() for _, tensor in unpack_tensors(flat, layout))


def test_strided_tensors_and_gradients():
    tensor = torch.arange(12.0).reshape(3, 4).t().requires_grad_()
    flat, layout, _ = pack_tensors([("a", tensor)])
    assert torch.equal(dict(unpack_tensors(flat, layout))["a"], tensor.detach())


def test_with_a_layout_tensors_may_go_as_soon_as_the_next_is_taken():
    named = [("a", torch.rand(4, 3)), ("b", torch.rand(5).bfloat16())]
    layout = tuple(meta_of(name, tensor) for name, tensor in named)

    def gathered():
        for name, tensor in named:
            whole = tensor.clone()
            yield name, whole
            whole.fill_(float("nan"))

    flat, *_ = pack_tensors(gathered(), layout)
    assert checksum(flat, layout) == pack_tensors(named).checksum


@pytest.mark.parametrize("wrong", [torch.zeros(3, 2), torch.zeros(2, 3).double()])
def test_tensors_that_do_not_fit_the_layout_are_refused(wrong):
    with pytest.raises(ValueError, match="expected TensorMeta"):
        pack_tensors([("a", wrong)], (TensorMeta("a", (2, 3), "float32"),))


def test_missing_tensors_and_short_buffers_are_refused():
    flat, layout, _ = pack_tensors([("a", torch.zeros(3)), ("b", torch.zeros(3))])
    with pytest.raises(ValueError, match=r"longer|shorter"):
        pack_tensors([("a", torch.zeros(3))], layout)
    with pytest.raises(ValueError, match="buffer of 64 bytes"):
        list(unpack_tensors(flat[:64], layout))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 11), st.integers(0, 7))
def test_a_checksum_sees_every_bit(position, bit):
    flat, layout, _ = pack_tensors([("a", torch.arange(3, dtype=torch.int32)), ("empty", torch.zeros(0))])
    before = checksum(flat, layout)
    assert before == checksum(flat.copy(), layout)
    flat[position] ^= 1 << bit
    assert checksum(flat, layout) != before


def test_a_checksum_sees_tensors_that_changed_places():
    one, other = torch.arange(16.0), torch.arange(16.0) + 1
    assert (
        pack_tensors([("a", one), ("b", other)]).checksum != pack_tensors([("a", other), ("b", one)]).checksum
    )


def test_tied_weights_travel_once():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    for tied, heads in ((True, 0), (False, 1)):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, **size))
        _, layout, _ = pack_tensors(model.named_parameters())
        assert sum(meta.name == "lm_head.weight" for meta in layout) == heads
        assert sum(meta.name == "model.embed_tokens.weight" for meta in layout) == 1
