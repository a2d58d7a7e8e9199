"""An adapter that an engine serves, on real Ray and vLLM, compared with the learner's own forward."""

from __future__ import annotations

import asyncio
import copy
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from settled import on_cpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from hindsight.configs.schema import Cluster, Config, Learner, Lora, Model, Rollout
from hindsight.learner.weight_sync import Canary, WeightSyncError
from hindsight.learner.weight_sync_store import sync_weights
from hindsight.rollout.adapter import Adapter, peft_names
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.types import EngineError, Sampling
from hindsight.rollout.weights import WeightSet, checksum, pack_tensors

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

CLOSE = 1e-4  # nats, float32 against float32
CONFIG = on_cpus(
    Config(
        model=Model(dtype="float32", max_length=512),
        rollout=Rollout(max_num_seqs=8, kv_cache_gib=0.25, request_timeout=60.0),
        learner=Learner(lora=Lora(rank=4, alpha=8)),
        cluster=Cluster(threads=1),
    )
)


class TestableEngine(Engine):
    """Adds what it holds: the numbers that vLLM knows, and how many folders."""

    __test__ = False

    async def held(self):
        return await self.llm.list_loras(), len(self.adapters)


class Student:
    """An engine and the learner's model with the adapter that it should serve."""

    def __init__(self, folder):
        env = {"env_vars": engine_env(CONFIG)}
        options = {"num_cpus": 0.5, "max_concurrency": 64, "runtime_env": env}
        self.handle = ray.remote(TestableEngine).options(**options).remote(folder, CONFIG, 0)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.weights = dict(self.model.named_parameters())
        self.adapter = Adapter(self.model, CONFIG.learner.lora, seed=0)
        self.version = 0

    def change(self, std):
        """Draw another B; returns the adapter to sync."""
        with torch.no_grad():
            for _, b in self.adapter.pairs.values():
                b.normal_(std=std)
        self.version += 1
        flat, layout, _ = pack_tensors(peft_names(self.adapter.pairs).items())
        return WeightSet(self.version, layout, checksum(flat, layout), ray.put(flat))

    def sync(self, weights):
        ids = prompt(40, seed=99)
        canary = Canary(ids, self.logprobs(ids), CLOSE)
        return asyncio.run(sync_weights([self.handle], weights, canary, CONFIG.learner.timeout, 60.0))

    def score(self, ids):
        return ray.get(self.handle.score.remote(ids))

    def logprobs(self, ids):
        """Log-probs of ids[1:], (L - 1,) float32, by the learner's forward."""
        tokens = torch.from_numpy(ids.astype(np.int64))
        with torch.no_grad():
            table = self.model(tokens[None]).logits[0, :-1].log_softmax(-1)
        return table.gather(1, tokens[1:, None])[:, 0].numpy()

    def gap(self, context, generation):
        """Largest distance of a generation's log-probs to the learner's, nats."""
        own = self.logprobs(np.concatenate([context, generation.ids]))[len(context) - 1 :]
        return float(np.abs(own - generation.logprobs).max())


def prompt(length, seed):
    return np.random.default_rng(seed).integers(20, 1000, length, dtype=np.int32)


@pytest.fixture(scope="module")
def student(ray_local, nano, tmp_path_factory):
    """On the nano model with no weight near 0, where bfloat16 is fine enough for any change."""
    model = AutoModelForCausalLM.from_pretrained(nano, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.copy_((weight.sign() * weight.abs().clamp(min=0.04)).bfloat16())
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(nano).save_pretrained(folder)
    made = Student(str(folder))
    ray.get(made.handle.ready.remote())
    yield made
    ray.kill(made.handle)


def test_a_change_below_the_rounding_of_weights_is_served_whole(student):
    ids = prompt(300, seed=1)
    served, own = student.score(ids), student.logprobs(ids)
    np.testing.assert_allclose(served, own, atol=CLOSE)
    assert student.sync(student.change(std=3e-5)).logprob_gap < CLOSE
    for name in student.adapter.pairs:  # merged in bfloat16, nothing would be left of it
        held = student.weights[name].bfloat16()
        assert torch.equal(student.adapter.merged(name, held).bfloat16(), held)
    expected, found = student.logprobs(ids) - own, student.score(ids) - served
    assert np.abs(expected).mean() > 1e-4
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()


def test_requests_in_flight_keep_their_adapter(student):
    student.sync(student.change(std=0.05))
    context, old, version = prompt(40, seed=2), copy.deepcopy(student), student.version
    sampling = [Sampling(1.0, 400, seed=i) for i in range(4)]
    before = [student.handle.generate.remote(context, one) for one in sampling]
    while ray.get(student.handle.stats.remote())["running"] < len(before):
        time.sleep(0.01)
    time.sleep(0.2)
    student.sync(student.change(std=0.05))
    after = [student.handle.generate.remote(context, one) for one in sampling]
    assert ray.wait(before, num_returns=len(before), timeout=0)[1], "the machine was too fast"
    for generations, holder, number in ((before, old, version), (after, student, version + 1)):
        for generation in ray.get(generations):
            assert (generation.versions == number).all()
            assert holder.gap(context, generation) < CLOSE
            assert (student if holder is old else old).gap(context, generation) > 0.05


def test_keys_of_one_adapter_are_not_used_for_another(student):
    context, sampling = prompt(100, seed=3), Sampling(1.0, 8, seed=0)

    def cached():
        before = ray.get(student.handle.stats.remote())["cached_tokens"]
        generation = ray.get(student.handle.generate.remote(context, sampling))
        assert student.gap(context, generation) < CLOSE
        return ray.get(student.handle.stats.remote())["cached_tokens"] - before

    assert [cached(), cached()] == [0, 96]
    student.sync(student.change(std=0.05))
    assert [cached(), cached()] == [0, 96]


def test_adapters_that_no_request_uses_are_forgotten(student):
    student.sync(student.change(std=0.05))
    assert ray.get(student.handle.held.remote()) == ([student.version], 1)


def test_other_bytes_than_were_sent_and_old_numbers_are_refused(student):
    weights = student.change(std=0.05)
    flat = ray.get(weights.data).copy()
    flat[0] ^= 1
    with pytest.raises(WeightSyncError, match="other bytes arrived"):
        student.sync(replace(weights, data=ray.put(flat)))
    with pytest.raises(EngineError, match="is served already"):  # last: the engine is then disabled
        student.sync(weights)
