"""Packed rows give what rows give that are read one by one, in models of several families."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_toys import VOCABULARY, random_samples, tiny_llama
from torch.nn.attention import varlen
from transformers import AutoConfig, AutoModelForCausalLM

from hindsight.learner import packing
from hindsight.learner.batching import collate
from hindsight.learner.logprobs import TokenLogprobs
from hindsight.learner.packing import (
    PackingError,
    attend_at_once,
    attend_by_row,
    enable_packing,
    hidden_states,
    kernel_agrees,
    obstacle,
    pack_rows,
)

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_local_experts": 4}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "mistral": {"sliding_window": None},
    "olmo2": {},
    "granite": {},
    "phi3": {},
}
ONE_BY_ONE = {
    "mistral": {"sliding_window": 8},
    "gemma3_text": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "mamba": {},
    "bloom": {},
}


def tiny(family, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE, **changes))


def alike(seed=0):
    """Rows of which some begin with the same tokens, one with all tokens of another, and two are equal."""
    rng = np.random.default_rng(seed)
    first, other = rng.integers(1, VOCABULARY, 9), rng.integers(1, VOCABULARY, 4)
    tails = [rng.integers(1, VOCABULARY, size) for size in (5, 12, 1)]
    rows = [np.concatenate([first, tail]) for tail in tails] + [other, first, first]
    rows.append(np.concatenate([first, tails[0][:3], other]))
    return sorted((row.astype(np.int32) for row in rows), key=lambda row: row.tobytes())


def states_and_gradient(lm, rows, together):
    """Each row's hidden states, and the gradient of a number made of them all."""
    trunk = lm.base_model
    lm.zero_grad()
    if together:
        packed, places = pack_rows(rows)
        hidden = hidden_states(trunk, packed)
        made = [hidden[place] for place in places]
    else:
        made = [hidden_states(trunk, pack_rows([row])[0]) for row in rows]
    torch.stack([one.sin().sum() * number for number, one in enumerate(made, 1)]).sum().backward()
    return made, torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_rows_read_one_by_one_by_the_models_own_attention(family):
    rows, lm = alike(), tiny(family, **FAMILIES[family])
    expected, slope = states_and_gradient(lm, rows, together=False)
    assert enable_packing(lm, CPU) == ""
    found, own = states_and_gradient(lm, rows, together=True)
    assert sum(pack_rows(rows)[0].own) < 0.5 * sum(map(len, rows))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own, slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()))


@pytest.mark.parametrize(("family", "changes"), ONE_BY_ONE.items())
def test_other_models_read_one_row_at_a_time(family, changes):
    lm = tiny(family, **changes)
    before = lm.config._attn_implementation
    assert enable_packing(lm, CPU) and lm.config._attn_implementation == before
    row = alike()[0]
    hidden = hidden_states(lm.base_model, pack_rows([row])[0])
    ids = torch.from_numpy(row.astype(np.int64))[None]
    assert torch.equal(hidden, lm.base_model(input_ids=ids).last_hidden_state[0])
    with pytest.raises(PackingError, match="one row at a time"):
        hidden_states(lm.base_model, pack_rows([row, row[1:]])[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 100), st.integers(1, 3))
def test_every_token_is_where_its_row_has_it(count, seed, letters):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, letters, rng.integers(1, 12)) for _ in range(count)]
    packed, places = pack_rows(rows)
    assert packed.lengths == tuple(map(len, rows)) and len(packed.ids) == packed.own_ends[-1]
    assert packed.row_ends[-1] == sum(map(len, rows))
    for row, place in zip(rows, places, strict=True):
        np.testing.assert_array_equal(packed.ids[place], row)
        np.testing.assert_array_equal(packed.positions[place], np.arange(len(row)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradient_with_and_without_sharing(checkpointing):
    samples = random_samples(6)
    for sample in samples[1:4]:
        size = min(len(sample.ids), len(samples[0].ids)) - 1
        sample.ids[:size] = samples[0].ids[:size]
    model = TokenLogprobs(tiny_llama().train())
    if checkpointing:
        model.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def run(parts):
        model.zero_grad()
        made = []
        for part in parts:
            batch = collate(part)
            made.append(model(batch.packed, batch.places, batch.targets).logprobs)
        torch.cat(made).sum().backward()
        return torch.cat(made).detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    found, slope = run([samples])
    expected, own = run([[sample] for sample in samples])
    assert sum(collate(samples).packed.shared) > 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, own, rtol=1e-4, atol=1e-4)


def aligned_at_the_end(query, key, value, own_ends, row_ends, most_own, most, **given):
    """As the variable-length kernel, from its definition: a row's last query sees all its keys."""
    assert given["window_size"] == (-1, 0) and given["enable_gqa"] and own_ends.dtype == torch.int32
    groups = query.shape[1] // key.shape[1]
    made = []
    for row in range(len(own_ends) - 1):
        q = query[own_ends[row] : own_ends[row + 1]]
        k, v = (x[row_ends[row] : row_ends[row + 1]].repeat_interleave(groups, 1) for x in (key, value))
        assert len(q) <= most_own and len(k) <= most
        scores = torch.einsum("qhd,khd->hqk", q, k) * (given["scale"] or q.shape[-1] ** -0.5)
        hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(1 + len(k) - len(q))
        made.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(made)


def attention_inputs():
    packed, _ = pack_rows(alike())
    torch.manual_seed(0)
    return packed, [torch.randn(1, heads, len(packed.ids), 8, requires_grad=True) for heads in (4, 2, 2)]


def test_one_call_of_the_kernel_equals_attention_row_by_row(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", aligned_at_the_end)
    packed, inputs = attention_inputs()
    module = torch.nn.Identity()
    made = []
    for attend in (attend_by_row, attend_at_once):
        found, _ = attend(module, *inputs, None, scaling=0.4, dropout=0.0, packed_rows=packed)
        made.append((found.detach(), *torch.autograd.grad(found.sin().sum(), inputs)))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernel", ["agrees", "differs", "fails"])
def test_a_kernel_that_gives_something_else_is_not_used(kernel, monkeypatch):
    """Another alignment of queries and keys would be such a difference."""

    def aligned_at_the_start(query, key, value, own_ends, row_ends, *most, **given):
        made = aligned_at_the_end(query, key, value, own_ends, row_ends, *most, **given)
        return made.roll(1, 0)

    def fails(*given, **more):
        raise RuntimeError("no kernel for this GPU")

    run = {"agrees": aligned_at_the_end, "differs": aligned_at_the_start, "fails": fails}[kernel]
    monkeypatch.setattr(varlen, "varlen_attn", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(packing.PackedRows, "to", lambda rows, device: rows)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, dtype: tensor)
    lm = SimpleNamespace(dtype=torch.bfloat16, config=tiny("llama").config)
    assert kernel_agrees(lm, torch.device("cuda")) == (kernel == "agrees")
    assert not kernel_agrees(SimpleNamespace(dtype=torch.float32), torch.device("cuda"))
    assert not kernel_agrees(lm, CPU)


def test_a_saved_model_does_not_name_our_attention(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    assert "hindsight" not in (tmp_path / "config.json").read_text()


def test_a_model_that_does_not_pass_the_rows_on_is_noticed():
    packed, inputs = attention_inputs()
    with pytest.raises(PackingError, match="without rows"):
        attend_by_row(torch.nn.Identity(), *inputs, None)
    with pytest.raises(PackingError, match="softcap"):
        attend_by_row(torch.nn.Identity(), *inputs, None, packed_rows=packed, softcap=30.0)
    lm = tiny("llama")
    lm._supports_attention_backend = False
    assert "attention interface" in obstacle(lm)
