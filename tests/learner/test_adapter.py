"""The adapter against PEFT's own merge, its files and a naive average."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_toys import tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model

from hindsight.configs.schema import Lora
from hindsight.rollout.adapter import FOLDER, Adapter, AdapterError, peft_names, read_adapter, write_adapter
from hindsight.rollout.outline import layer_names

LORA = Lora(rank=4, alpha=6, dropout=0.2)
IDS = torch.arange(1, 30)[None]


def plain_llama(**shape):
    """The tiny model with its own attention, for whole sequences without packing."""
    model = tiny_llama(**shape)
    model.set_attn_implementation("sdpa")
    return model


def adapted(lora=LORA, seed=0):
    """A tiny model with an adapter that does something, its own parameters by name, and the adapter."""
    model = plain_llama()
    own = dict(model.named_parameters())
    adapter = Adapter(model, lora, seed)
    with torch.no_grad():
        for _, b in adapter.pairs.values():
            b.normal_(std=0.1)
    return model, own, adapter


@torch.no_grad()
def test_the_merge_is_pefts_own():
    model, own, adapter = adapted()
    before = {name: weight.clone() for name, weight in own.items()}
    merged = {name: adapter.merged(name, own[name]) if name in adapter.pairs else own[name] for name in own}
    plain = plain_llama()
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert len(adapter.pairs) == 14  # seven linear layers in each of two blocks

    peft = get_peft_model(plain_llama(), LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
    theirs = dict(peft.named_parameters())
    for name, pair in adapter.pairs.items():
        for letter, tensor in zip("AB", pair, strict=True):
            layer = name.removesuffix(".weight")
            theirs[f"base_model.model.{layer}.lora_{letter}.default.weight"].copy_(tensor)
    unloaded = dict(peft.merge_and_unload().named_parameters())
    for name, weight in merged.items():
        torch.testing.assert_close(weight, unloaded[name])
    assert all(torch.equal(own[name], before[name]) for name in own)  # the learner's own stay as they were


@torch.no_grad()
def test_the_average_is_of_a_and_b():
    _, _, adapter = adapted()
    rng = torch.Generator().manual_seed(3)
    name, share = next(iter(adapter.pairs)), 0.1
    mean_a, mean_b = (held.clone() for held in adapter.average[name])
    assert mean_a.abs().sum() > 0 and mean_b.abs().sum() == 0  # as the adapter began
    products = 0.0
    for _ in range(5):
        for tensor in adapter.pairs[name]:
            tensor.add_(torch.randn(tensor.shape, generator=rng))
        adapter.follow(name, share)
        a, b = adapter.pairs[name]
        mean_a, mean_b = 0.9 * mean_a + 0.1 * a, 0.9 * mean_b + 0.1 * b
        products = 0.9 * products + 0.1 * (b @ a)
    held_a, held_b = adapter.average[name]
    torch.testing.assert_close(held_a, mean_a, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(held_b, mean_b, rtol=1e-4, atol=1e-4)
    assert (held_b @ held_a - products).abs().max() > 0.1  # not the mean of the products
    adapter.follow(name, 1.0)
    assert all(map(torch.equal, adapter.average[name], adapter.pairs[name]))


@torch.no_grad()
def test_files_give_the_adapter_back(tmp_path):
    model, _, adapter = adapted()
    base = tmp_path / "base"
    plain_llama().save_pretrained(base)
    assert read_adapter(base) is None
    write_adapter(tmp_path / "made" / FOLDER, peft_names(adapter.pairs), LORA, str(base))
    saved = read_adapter(tmp_path / "made")
    assert saved.base == base and saved.settings == replace(LORA, dropout=0.0)
    assert all(torch.equal(tensor, saved.tensors[name]) for name, tensor in peft_names(adapter.pairs).items())
    peft = PeftModel.from_pretrained(plain_llama(), str(tmp_path / "made" / FOLDER))
    torch.testing.assert_close(peft(IDS).logits, model(IDS).logits)
    seven = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert layer_names(str(base), LORA) == seven  # the head is not among them
    assert layer_names(str(base), replace(LORA, targets=["self_attn.q_proj"])) == ["q_proj"]
    with pytest.raises(AdapterError, match="base_model_name_or_path"):
        write_adapter(tmp_path / "lost" / FOLDER, peft_names(adapter.pairs), LORA, str(tmp_path / "gone"))
        read_adapter(tmp_path / "lost")


def test_the_same_seed_draws_the_same_adapter_and_dropout_is_off_outside_its_block():
    (model, _, one), (_, _, same), (_, _, other) = adapted(seed=1), adapted(seed=1), adapted(seed=2)
    name = next(iter(one.pairs))
    assert torch.equal(one.average[name][0], same.average[name][0])
    assert not torch.equal(one.average[name][0], other.average[name][0])
    model.train()
    with one.dropout(False):
        quiet = model(IDS).logits
    assert torch.equal(model(IDS).logits, quiet)
    with one.dropout(True):
        assert not torch.equal(model(IDS).logits, quiet)
    assert torch.equal(model(IDS).logits, quiet)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_prjo"])
def test_layers_that_cannot_carry_it_are_refused(target):
    with pytest.raises(AdapterError, match=r"learner\.lora\.targets"):
        Adapter(plain_llama(tied=False), replace(LORA, targets=[target]), 0)
