"""The learner on real Ray and real DeepSpeed, compared with plain PyTorch on the same samples and weights."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from learner_toys import VOCABULARY, random_samples, tiny_llama, token_mean
from peft import PeftModel
from safetensors import safe_open
from settled import on_cpus
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hindsight.learner.logprobs
import hindsight.learner.rank
from hindsight.configs.schema import Cluster, Config, Learner, Lora, Model
from hindsight.envs.runtime.remote import RemoteDefect, await_remote
from hindsight.learner.batching import collate
from hindsight.learner.checkpoint import CheckpointError
from hindsight.learner.group import DEADLINE, LearnerGroup, answers
from hindsight.learner.logprobs import TokenLogprobs
from hindsight.learner.policy import PolicyRank
from hindsight.learner.rank import LearnerError, deepspeed_config, learner_env
from hindsight.learner.signals import Reweight
from hindsight.rollout.adapter import Adapter
from hindsight.rollout.weights import unpack_tensors

LR = 1e-3
CONFIG = on_cpus(
    Config(
        model=Model(dtype="float32"),
        learner=Learner(micro_batch_tokens=64, weight_decay=0.01, timeout=120.0),
        cluster=Cluster(threads=1, start_timeout=240.0),
        signal=Reweight.Settings(name="reweight"),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder of random weights, with a tokenizer."""
    made = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(made)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(made)
    return made


def learner_config(**changes):
    dtype = changes.pop("dtype", "float32")
    return replace(CONFIG, model=Model(dtype=dtype), learner=replace(CONFIG.learner, **changes))


async def tensors(learner, export="export_merged"):
    weights = await getattr(learner, export)(1)
    flat = ray.get(weights.data)
    return {name: tensor.clone() for name, tensor in unpack_tensors(flat, weights.layout)}


def plain_update(samples):
    """One update of the same samples in plain PyTorch: loss, gradient norm, weights."""
    model = TokenLogprobs(tiny_llama())
    loss, gradient = token_mean(model, samples, 10**6)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.learner.max_grad_norm)
    torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01).step()
    return loss, float(gradient.norm()), dict(model.lm.named_parameters())


async def loads_elsewhere(learner, target):
    """`save_model` gives a folder with the exported weights, a tokenizer and the learner's own log-probs."""
    await learner.save_model(target)
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    for name, tensor in (await tensors(learner)).items():
        assert torch.equal(model.get_parameter(name).detach(), tensor), name
    assert AutoTokenizer.from_pretrained(target).eos_token == "w1"
    ids = np.arange(1, 30, dtype=np.int32)
    with torch.no_grad():
        table = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().log_softmax(-1)
    expected = table[np.arange(len(ids) - 1), ids[1:].astype(np.int64)]
    scored = await learner.score(ids)
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.1
    np.testing.assert_allclose(scored, expected.numpy(), atol=tolerance)


async def resumes_exactly(learner, samples, target):
    """After `load`, the same update gives the same numbers and the same weights as it did after `save`."""

    async def go_on():
        stats = await learner.update({"policy": samples}, 0.5, LR)
        return stats | {"seconds": 0.0}, (await learner.export(2)).checksum

    target.mkdir()
    await learner.save(target)
    first = await go_on()
    await learner.load(target)
    assert await go_on() == first


class LargeRank(PolicyRank):
    """Shards and fetches the tiny model's parameters as DeepSpeed does a large one's."""

    def start(self, host, port):
        hindsight.learner.rank.deepspeed_config = self._zero_3  # in this actor's process
        hindsight.learner.logprobs.CHUNK = 4  # several to a micro-batch
        return super().start(host, port)

    @staticmethod
    def _zero_3(config):
        settings = deepspeed_config(config)
        settings["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,  # none is small enough to stay whole
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 1024,
        }
        return settings


class LargeGroup(LearnerGroup):
    RANK = LargeRank


def test_two_ranks_of_zero_3_equal_plain_pytorch(ray_local, folder, tmp_path):
    samples = random_samples(5, longest=24)

    async def check(learner):
        await learner.start()
        await learner.update({"sft": random_samples(3, seed=1)}, 0.0, 0.0)  # moves only Adam's moments,
        await learner.reset_optimizer()  # which are then as they were
        stats = await learner.update({"policy": samples}, 0.5, LR)
        loss, norm, weights = plain_update(samples)
        assert stats["loss"] == pytest.approx(loss, rel=1e-4)
        assert stats["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert stats["tokens"] == sum(len(sample.positions) for sample in samples) and stats["samples"] == 5
        assert (
            stats["micro_batches"] == 3
        )  # five samples of up to 21 tokens, one a micro-batch, and an empty one
        await learner.score(np.arange(1, 30, dtype=np.int32))  # fetches ahead what is gathered next
        made = await tensors(learner)
        assert list(made) == list(weights)
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, weights[name].detach(), rtol=1e-3, atol=2e-4)
        await resumes_exactly(learner, samples, tmp_path / "state")
        await loads_elsewhere(learner, tmp_path / "model")

    run(check, LargeGroup(learner_config(ranks=2, zero_stage=3, micro_batch_tokens=16), str(folder)))


def test_one_rank_in_bfloat16(ray_local, folder, tmp_path):
    samples = random_samples(9)

    async def check(learner):
        started = await learner.start()
        assert started["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
        before = await tensors(learner)
        assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
        (tmp_path / "fresh").mkdir()
        await learner.save(tmp_path / "fresh")

        stats = await learner.update({"policy": samples}, 0.5, LR)
        assert stats["grad_norm"] == pytest.approx(plain_update(samples)[1], rel=0.05)
        assert {"loss", "entropy", "clip_fraction", "mismatch_kl", "mismatch_max", "ess"} <= set(stats)
        assert {"teacher_gap", "weight_mean", "weight_clip_fraction"} <= set(stats)
        assert stats["clip_fraction"] == 0  # one update: the policy is its own old policy
        after = await tensors(learner)
        assert any(not torch.equal(after[name], before[name]) for name in before)

        checksums = []
        for held, strength in ((samples, 0.0), (random_samples(9, teacher=False), 0.5), (samples, 0.5)):
            await learner.load(tmp_path / "fresh")
            await learner.update({"policy": held}, strength, LR)
            checksums.append((await learner.export(1)).checksum)
        assert checksums[0] == checksums[1] != checksums[2]  # λ = 0 is GRPO to the bit

        for resets in (False, True):
            await learner.load(tmp_path / "fresh")
            await learner.update({"sft": samples}, 0.0, 0.0)
            if resets:
                await learner.reset_optimizer()
            await learner.update({"policy": samples}, 0.5, LR)
            assert ((await learner.export(1)).checksum == checksums[2]) == resets

        losses = [(await learner.update({"sft": samples}, 0.0, 1e-2))["loss"] for _ in range(8)]
        assert losses[-1] < losses[0]
        await resumes_exactly(learner, samples, tmp_path / "state")
        await loads_elsewhere(learner, tmp_path / "model")
        await fails_with_a_reason(learner, samples, tmp_path)

    run(check, LearnerGroup(learner_config(dtype="bfloat16", mini_batches=1), str(folder)))


def test_several_updates_keep_the_first_policy_as_the_old_one(ray_local, folder, tmp_path):
    """On one rank, and on two of another ZeRO stage, which then read the state of the first to the bit."""
    samples, saved = random_samples(8), {}

    async def check(learner):
        await learner.start()
        stats = await learner.update({"policy": samples}, 0.0, 1e-2)
        # The second and third mini-batch were sampled by weights that the first one has left behind.
        assert stats["micro_batches"] >= 3 and stats["clip_fraction"] > 0
        # The gap to the engine is that of the old policy: the weights before this call.
        lm = TokenLogprobs(tiny_llama())
        batch = collate(samples)
        old = lm(batch.packed, batch.places, batch.targets)[0].detach()
        assert stats["mismatch_max"] == pytest.approx(float((old - batch.rollout).abs().max()), abs=0.2)
        if saved:
            await learner.load(tmp_path / "1")
        target = tmp_path / f"{learner.config.learner.ranks}"
        target.mkdir()
        await learner.save(target)
        saved[target] = gathered(target), (await learner.export(1)).checksum

    settings = {"dtype": "bfloat16", "mini_batches": 3, "gradient_checkpointing": True}
    for group, ranks, stage in ((LearnerGroup, 1, 2), (LargeGroup, 2, 3)):
        run(check, group(learner_config(ranks=ranks, zero_stage=stage, **settings), str(folder)))
    (one, exported), (two, exported_again) = saved.values()
    assert exported == exported_again and one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def gathered(folder):
    """The whole tensors of a checkpoint, and Adam's step."""
    made, pieces = {}, {}
    for file in sorted((folder / "learner").iterdir()):
        with safe_open(file, "pt") as opened:
            made["steps"] = torch.tensor([float(value) for value in opened.metadata().values()])
            for key in list(opened.keys()):
                name, _, start = key.partition("@")
                pieces.setdefault(name, {})[int(start or 0)] = opened.get_tensor(key)
    return made | {name: torch.cat([own[start] for start in sorted(own)]) for name, own in pieces.items()}


def test_an_adapter_on_two_ranks_of_zero_3(ray_local, folder, tmp_path):
    samples, lora = random_samples(5, longest=24), Lora(rank=4, alpha=8, dropout=0.3)

    async def check(learner):
        started = await learner.start()
        base, start = dict(tiny_llama().named_parameters()), await tensors(learner)
        assert all(torch.equal(start[name], base[name]) for name in base)  # B = 0
        assert started["trained"] < started["parameters"] == sum(p.numel() for p in base.values())

        stats = await learner.update({"policy": samples}, 0.5, 1e-2)
        loss, norm, weights = adapter_update(samples, lora)
        assert stats["loss"] == pytest.approx(loss, rel=1e-4)
        assert stats["grad_norm"] == pytest.approx(norm, rel=1e-4)
        made = await tensors(learner)
        assert list(made) == list(base)
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=2e-4)
            assert torch.equal(tensor, base[name]) == ("proj" not in name)

        sent = await tensors(learner, "export")
        assert len(sent) == 2 * 14 and all("lora_" in name for name in sent)  # A and B, and nothing else
        averaged = await learner.export_average(1, 0.1)
        assert (await learner.export(1)).checksum != averaged.checksum
        await loads_elsewhere(learner, tmp_path / "model")
        peft = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "model/adapter")).merge_and_unload()
        for name, parameter in peft.named_parameters():
            torch.testing.assert_close(parameter, made[name], rtol=1e-5, atol=1e-6)
        await resumes_with_dropout(learner, samples, tmp_path / "state")

    settings = learner_config(
        ranks=2, zero_stage=3, micro_batch_tokens=24, lora=lora, gradient_checkpointing=True
    )
    run(check, LearnerGroup(settings, str(folder)))


def adapter_update(samples, lora):
    """One update of the adapter in plain PyTorch, without dropout: loss, gradient norm, merged weights."""
    lm = tiny_llama()
    own = dict(lm.named_parameters())
    adapter = Adapter(lm, lora, CONFIG.seed)
    loss, gradient = token_mean(TokenLogprobs(lm), samples, 10**6)
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, CONFIG.learner.max_grad_norm)
    torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01).step()
    merged = {name: adapter.merged(name, own[name]).detach() for name in adapter.pairs}
    return loss, float(gradient.norm()), own | merged


async def resumes_with_dropout(learner, samples, target):
    """As `resumes_exactly`, for an update that drops some inputs, and for the average."""
    target.mkdir()
    await learner.save(target)
    assert all("lora_" in name for name in gathered(target) if name != "steps")  # nothing frozen

    async def go_on():
        stats = await learner.update({"sft": samples}, 0.0, LR)
        sent = (await learner.export(2)).checksum, (await learner.export_average(2, 0.1)).checksum
        return stats | {"seconds": 0.0}, sent

    first, other = await go_on(), await go_on()
    await learner.load(target)
    assert await go_on() == first != other


async def fails_with_a_reason(learner, samples, folder):
    with pytest.raises(ValueError, match="needs samples"):
        await learner.update({"policy": []}, 0.0, LR)
    with pytest.raises(ValueError, match="policy, signal, sft"):
        await learner.update({"mystery": samples}, 0.0, LR)
    with pytest.raises(CheckpointError, match=r"nowhere/learner has no training state"):
        await learner.load(folder / "nowhere")
    broken = replace(samples[0], advantages=np.full_like(samples[0].advantages, np.nan))
    with pytest.raises(LearnerError, match="not finite"):
        await learner.update({"policy": [broken]}, 0.0, LR)
    learner.stop()
    with pytest.raises(LearnerError, match="not running"):
        await learner.score(np.arange(4))


def test_all_ranks_finish_before_a_failed_write_is_reported(monkeypatch):
    """What they have written may then be removed."""
    finished = []

    async def call(rank, method, folder):
        if rank == 0:
            raise RemoteDefect("learner.save failed: SafetensorError: No space left on device")
        await asyncio.sleep(0.05)
        finished.append((rank, method, folder))

    group = LearnerGroup(CONFIG, "model")
    group.ranks = [0, 1]
    monkeypatch.setattr(group, "call", call)
    with pytest.raises(RemoteDefect, match="No space left"):
        asyncio.run(group.save("folder"))
    assert finished == [(1, "save", "folder")]


def test_a_missed_deadline_names_the_setting():
    async def wait():
        with pytest.raises(LearnerError, match=r"increase learner\.timeout"):
            await answers([await_remote(asyncio.sleep(60), timeout=0.01, setting=DEADLINE, what="update")])

    asyncio.run(wait())


def test_a_rank_without_a_gpu_is_told_so():
    assert learner_env(CONFIG, gpu=False)["DS_ACCELERATOR"] == "cpu"
    assert "DS_ACCELERATOR" not in learner_env(CONFIG, gpu=True)
    assert learner_env(CONFIG, gpu=False)["OMP_NUM_THREADS"] == "1"


def run(check, learner):
    async def guarded():
        try:
            await check(learner)
        finally:
            learner.stop()

    asyncio.run(guarded())
