"""The critic: its loss, its values, and its ranks on real Ray and DeepSpeed against plain PyTorch."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from learner_toys import random_samples, tiny_llama
from settled import on_cpus

from hindsight.configs.schema import Cluster, Config, Learner, Model
from hindsight.learner.batching import collate
from hindsight.learner.critic import CriticGroup, TokenValues
from hindsight.learner.gae import GaeSettings
from hindsight.learner.losses import value
from hindsight.rollout.weights import WeightSet, checksum, pack_tensors

number = st.floats(-20, 20)


@given(st.lists(st.tuples(number, number, number), max_size=6), st.sampled_from([0.0, 0.5]))
@example([(1.6717937324936335e-66, 1.982088612288724e-51, 0.0)], 0.5)
def test_loss_equals_a_naive_one(tokens, clip):
    total, naive, held = 0.0, 0.0, 0
    for v, old, target in tokens:
        near = min(max(v, old - clip), old + clip) if clip else v
        naive += 0.5 * max((v - target) ** 2, (near - target) ** 2)
        held += (near - target) ** 2 > (v - target) ** 2
    columns = torch.tensor(tokens, dtype=torch.float64).reshape(-1, 3).T
    total, sums = value(*columns, clip)
    assert float(total) == pytest.approx(naive, abs=1e-9)
    assert (sums["loss"], sums["clipped"]) == (pytest.approx(naive, abs=1e-9), held)


def test_loss_by_hand():
    """V = 0.25 within reach of 0, and 2 beyond it: ½·0.75², and ½·max(1, 2.5²) with R = 1 and 3."""
    values = torch.tensor([0.25, 2.0], requires_grad=True)
    total, sums = value(values, torch.zeros(2), torch.tensor([1.0, 3.0]), 0.5)
    total.backward()
    assert float(total.detach()) == pytest.approx(0.28125 + 3.125) and sums["clipped"] == 1
    assert values.grad.tolist() == [-0.75, 0.0]  # what has moved far enough moves no further


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_read_before_each_sampled_token(dtype):
    lm = tiny_llama(tied=False, dtype=dtype).eval()
    lm.set_attn_implementation("sdpa")
    critic = TokenValues(tiny_llama(tied=False, dtype=dtype).eval())
    samples = random_samples(4)
    batch = collate(samples)
    assert (critic(batch.packed, batch.places) == 0).all()
    torch.nn.init.normal_(critic.value_head.weight)
    torch.nn.init.constant_(critic.value_head.bias, 0.5)
    found = critic(batch.packed, batch.places)
    assert found.dtype == torch.float32
    weight = critic.value_head.weight[0].float()
    expected = []
    for sample in samples:
        for position in sample.positions:
            before = torch.from_numpy(sample.ids[:position].astype(np.int64))[None]
            state = lm(before, output_hidden_states=True).hidden_states[-1][0, -1]
            expected.append(float((state.float() @ weight).detach()) + 0.5)
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    np.testing.assert_allclose(found.detach(), expected, atol=tolerance)
    assert "model.embed_tokens.weight" in dict(critic.named_parameters())
    assert not any("lm_head" in name for name, _ in critic.named_parameters())


CONFIG = on_cpus(
    Config(
        model=Model(dtype="float32"),
        learner=Learner(micro_batch_tokens=24, timeout=120.0),
        cluster=Cluster(threads=1, start_timeout=240.0),
        credit=GaeSettings(advantage="gae", value_clip=0.0),
    )
)
LR = 3e-3


def taught(samples, returns=None):
    """Samples with zero values, and returns that depend on the sample or are all the same."""
    return [
        replace(
            sample,
            values=np.zeros(len(sample.positions), np.float32),
            returns=np.full(len(sample.positions), index - 2 if returns is None else returns, np.float32),
        )
        for index, sample in enumerate(samples)
    ]


def plain_updates(samples, count):
    """(values, gradient norm, loss) of each of some updates in plain PyTorch, from the weights of seed 1."""
    critic = TokenValues(tiny_llama(seed=1))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=LR, weight_decay=CONFIG.learner.weight_decay)
    batch = collate(samples)
    history = []
    for _ in range(count):
        optimizer.zero_grad()
        values = critic(batch.packed, batch.places)
        loss = 0.5 * (values - batch.returns).square().mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(critic.parameters(), CONFIG.learner.max_grad_norm)
        optimizer.step()
        history.append((values.detach().numpy(), float(norm), float(loss.detach())))
    return history


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tiny_llama(seed=0).save_pretrained(made)
    return made


@pytest.mark.parametrize(("ranks", "stage"), [(2, 3)])
def test_ranks_equal_plain_pytorch(ray_local, folder, tmp_path, ranks, stage):
    """From the student's weights, not the folder's; then through a checkpoint; then to constant returns."""
    samples = taught(random_samples(5, longest=24))
    config = replace(CONFIG, learner=replace(CONFIG.learner, ranks=ranks, zero_stage=stage))
    critic = CriticGroup(config, str(folder), [{"num_cpus": 0.25}] * ranks)

    async def check():
        await critic.start()
        flat, layout, _ = pack_tensors(tiny_llama(seed=1).named_parameters())
        await critic.load_weights(WeightSet(1, layout, checksum(flat, layout), ray.put(flat)))
        for values, norm, loss in plain_updates(samples, 3):
            found = np.concatenate(await critic.values(samples))
            np.testing.assert_allclose(found, values, atol=2e-3)
            stats = await critic.fit(samples, LR)
            assert stats["loss"] == pytest.approx(loss, rel=1e-3)
            assert stats["grad_norm"] == pytest.approx(norm, rel=1e-2)
            assert {"explained_variance", "value_mean", "clip_fraction"} <= stats.keys()
        await critic.save(tmp_path)
        kept = await critic.values(samples)
        constant = taught(samples, 2.0)
        losses = [(await critic.fit(constant, 1e-2))["loss"] for _ in range(25)]
        assert losses[0] > 1 and losses[-1] < 0.05
        await critic.load(tmp_path)
        for ours, before in zip(await critic.values(samples), kept, strict=True):
            np.testing.assert_array_equal(ours, before)
        with pytest.raises(ValueError, match="one of value"):
            await critic.update({"policy": samples}, 0.0, LR)
        assert await critic.values([]) == []

    try:
        asyncio.run(check())
    finally:
        critic.stop()
