"""Engines on real Ray and real vLLM, compared with Hugging Face's forward of the same weights in float32."""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from settled import on_cpus
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hindsight.configs.schema import Cluster, Config, Model, Rollout
from hindsight.learner.weight_sync import Canary, WeightSyncError
from hindsight.learner.weight_sync_store import sync_weights
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.types import EngineError, Sampling
from hindsight.rollout.weights import WeightSet, checksum, pack_tensors

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file

VOCABULARY, EOS, CONTEXT = 64, 1, 512
CLOSE = 1e-3  # nats, float32 against float32
CONFIG = on_cpus(
    Config(
        model=Model(dtype="float32", max_length=CONTEXT),
        rollout=Rollout(max_num_seqs=16, kv_cache_gib=0.25, request_timeout=60.0),
        cluster=Cluster(threads=1),
    )
)


class TestableEngine(Engine):
    """Adds a way to run a function in the process that holds the model."""

    __test__ = False

    async def in_worker(self, function):
        return await self.llm.collective_rpc(function)


def save_model(folder, tied):
    torch.manual_seed(int(tied))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.15,  # far from uniform, so that wrong weights show
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token=f"w{EOS}").save_pretrained(
        folder
    )
    return model


class Student:
    """An engine and the learner's model it should agree with. `sync` gives the engine the new weights."""

    def __init__(self, handle, model):
        self.handle = handle
        self.model = model
        self.version = 0

    def generate(self, prompt, sampling):
        return ray.get(self.handle.generate.remote(prompt, sampling))

    def score(self, ids):
        return ray.get(self.handle.score.remote(ids))

    def change(self):
        """Move every weight, as an update would; returns the set to sync."""
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        self.version += 1
        flat, layout, _ = pack_tensors(self.model.named_parameters())
        return WeightSet(self.version, layout, checksum(flat, layout), ray.put(flat))

    def sync(self, weights):
        ids = prompt(40, seed=99)
        canary = Canary(ids, logprobs(self.model, ids), CLOSE)
        return asyncio.run(sync_weights([self.handle], weights, canary, CONFIG.learner.timeout, 60.0))


def prompt(length, seed):
    return np.random.default_rng(seed).integers(2, VOCABULARY, length, dtype=np.int32)


def logprobs(model, ids, temperature=1.0):
    """Log-probs of ids[1:], (L - 1,) float32, by one forward."""
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        logits = model(tokens[None]).logits[0, :-1]
    return (logits / temperature).log_softmax(-1).gather(1, tokens[1:, None])[:, 0].numpy()


def sampled_logprobs(model, context, generation, temperature=1.0):
    """What the model gives the sampled tokens, (n,) float32."""
    return logprobs(model, np.concatenate([context, generation.ids]), temperature)[len(context) - 1 :]


def gap(a, b):
    return float(np.abs(a - b).max())


@pytest.fixture(scope="module")
def students(ray_local, tmp_path_factory):
    """One engine with tied and one with untied embeddings."""
    env = {**engine_env(CONFIG), "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}  # for `in_worker`
    actor = ray.remote(TestableEngine).options(num_cpus=0.5, runtime_env={"env_vars": env})
    built = []
    for index, tied in enumerate((True, False)):
        folder = tmp_path_factory.mktemp("model")
        model = save_model(folder, tied)
        built.append(Student(actor.remote(str(folder), CONFIG, index), model))
    ray.get([student.handle.ready.remote() for student in built])
    yield built
    for student in built:
        ray.kill(student.handle)


@pytest.fixture(params=[0, 1], ids=["tied", "untied"])
def student(request, students):
    return students[request.param]


@pytest.fixture
def tied(students):
    return students[0]


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_recorded_logprobs_are_those_of_the_sampling_distribution(student, temperature):
    context = prompt(50, seed=1)
    generation = student.generate(context, Sampling(temperature, 24, seed=3))
    assert generation.ids.dtype == np.int32
    assert generation.logprobs.dtype == np.float32
    assert generation.ids.shape == generation.logprobs.shape
    assert gap(generation.logprobs, sampled_logprobs(student.model, context, generation, temperature)) < CLOSE
    assert (generation.versions == student.version).all()


def test_scores_are_those_of_hugging_face(student):
    ids = prompt(120, seed=2)
    assert gap(student.score(ids), logprobs(student.model, ids)) < CLOSE


def test_greedy_takes_the_likeliest_token_every_time(tied):
    context = prompt(30, seed=4)
    first, again = (tied.generate(context, Sampling(0.0, 16)) for _ in range(2))
    assert first.ids.tolist() == again.ids.tolist()
    tokens = torch.from_numpy(np.concatenate([context, first.ids]).astype(np.int64))
    with torch.no_grad():
        best = tied.model(tokens[None]).logits[0].argmax(-1).numpy()
    assert best[len(context) - 1 : -1].tolist() == first.ids.tolist()


def test_a_seed_names_a_sample(tied):
    context = prompt(30, seed=5)
    samples = [tied.generate(context, Sampling(1.0, 16, seed)).ids.tolist() for seed in (7, 7, 8)]
    assert samples[0] == samples[1] != samples[2]


def test_seeded_prompts_that_exceed_one_step_together(tied):
    """Eight long prompts at once: vLLM would split one of them over two steps and die of it."""
    contexts = [prompt(400, seed=100 + i) for i in range(8)]
    sampling = Sampling(1.0, 4, seed=1)
    generations = ray.get([tied.handle.generate.remote(context, sampling) for context in contexts])
    for context, generation in zip(contexts, generations, strict=True):
        assert gap(generation.logprobs, sampled_logprobs(tied.model, context, generation)) < CLOSE


def test_the_end_of_turn_token_is_kept(tied):
    context = prompt(20, seed=6)
    generations = ray.get(
        [tied.handle.generate.remote(context, Sampling(1.0, 200, seed)) for seed in range(8)]
    )
    stopped = [generation for generation in generations if generation.finish == "stop"]
    assert stopped
    for generation in generations:
        assert (generation.finish == "stop") == (generation.ids[-1] == EOS)
        assert EOS not in generation.ids[:-1]
    assert len(tied.generate(context, Sampling(0.0, 3)).ids) <= 3


def test_prompts_that_do_not_fit_are_refused(tied):
    with pytest.raises(EngineError, match="prompt of 512 tokens; expected 1 to 511"):
        tied.generate(prompt(CONTEXT, seed=7), Sampling(1.0, 4))
    with pytest.raises(EngineError, match="prompt of 0 tokens"):
        tied.generate(prompt(0, seed=7), Sampling(1.0, 4))
    assert tied.generate(prompt(CONTEXT - 1, seed=7), Sampling(1.0, 4)).finish == "length"


def test_synced_weights_are_used_and_old_keys_are_not(student):
    context = prompt(100, seed=8)
    sampling = Sampling(1.0, 16, seed=2)
    student.generate(context, sampling)
    before = ray.get(student.handle.stats.remote())
    student.generate(context, sampling)
    after = ray.get(student.handle.stats.remote())
    assert after["cached_tokens"] - before["cached_tokens"] == 96  # three whole blocks: keys do get cached
    new = {name: after[name] - before[name] for name in after}
    assert (new["looked_up_tokens"], new["found_tokens"]) == (100, 96)  # as vLLM's scheduler says
    assert (after["decoding"], after["waiting"]) == (0, 0) and 0 <= after["kv_cache"] <= 1

    old = copy.deepcopy(student.model)
    weights = student.change()
    assert gap(student.score(context), logprobs(student.model, context)) > 0.1
    report = student.sync(weights)
    assert report.checksum == weights.checksum
    assert report.logprob_gap < CLOSE

    generation = student.generate(context, sampling)
    assert (generation.versions == student.version).all()
    assert ray.get(student.handle.stats.remote())["cached_tokens"] == after["cached_tokens"]
    assert gap(generation.logprobs, sampled_logprobs(student.model, context, generation)) < CLOSE
    assert gap(generation.logprobs, sampled_logprobs(old, context, generation)) > 0.1


def test_a_sync_in_flight_keeps_requests_and_changes_their_weights(tied):
    """On a busy machine the sync may come before a request's first token or after its last: then again."""
    for attempt in range(6):
        if switched_in_flight(tied, seconds=0.05 * 2**attempt, seed=20 + 12 * attempt):
            return
    pytest.fail("no request was in flight during any of six syncs")


def switched_in_flight(student, seconds, seed):
    """How many of twelve requests began under the old weights and ended under those synced meanwhile.

    Twelve, for a request ends by chance: of random logits the stop token is one in 64.
    """
    contexts = [prompt(40, seed=seed + i) for i in range(12)]
    old, old_version = copy.deepcopy(student.model), student.version
    weights = student.change()
    sampling = [Sampling(1.0, 460, seed=i) for i in range(12)]
    pending = [student.handle.generate.remote(*one) for one in zip(contexts, sampling, strict=True)]
    time.sleep(seconds)
    student.sync(weights)
    switched = 0
    for context, generation in zip(contexts, ray.get(pending), strict=True):
        assert generation.finish in ("stop", "length")
        under_old = np.abs(generation.logprobs - sampled_logprobs(old, context, generation)) < CLOSE
        under_new = np.abs(generation.logprobs - sampled_logprobs(student.model, context, generation)) < CLOSE
        was_old = generation.versions == old_version
        assert under_old[was_old].all() and under_new[~was_old].all()
        assert (generation.versions[~was_old] == student.version).all() and (np.diff(was_old * 1) <= 0).all()
        switched += was_old.any() and not was_old.all()
    return switched


def test_bytes_that_differ_from_the_learners_are_detected(tied):
    weights = tied.change()
    flat = ray.get(weights.data).copy()
    flat[0] ^= 1  # the lowest bit of one weight: no canary would show it
    with pytest.raises(WeightSyncError, match="engine 0 loaded weights"):
        tied.sync(replace(weights, data=ray.put(flat)))
    tied.sync(weights)


def skip_refresh(worker):
    import hindsight.rollout.transfer

    hindsight.rollout.transfer.refresh_packed_head, worker.refresh = (
        lambda model: None,
        hindsight.rollout.transfer.refresh_packed_head,
    )


def restore_refresh(worker):
    import hindsight.rollout.transfer

    hindsight.rollout.transfer.refresh_packed_head = worker.refresh


def test_a_stale_output_head_is_detected(tied):
    """vLLM's own reload leaves a tied head on CPU as it was; its bytes arrive, so only the canary tells."""
    ray.get(tied.handle.in_worker.remote(skip_refresh))
    weights = tied.change()
    with pytest.raises(WeightSyncError, match="still computes with other weights"):
        tied.sync(weights)
    ray.get(tied.handle.in_worker.remote(restore_refresh))
    assert tied.sync(weights).logprob_gap < CLOSE


def test_an_engine_that_misses_weights_is_out_of_use(students):
    """Last for the untied engine: it may hold half an update."""
    untied = students[1]
    weights = untied.change()
    flat, layout, _ = pack_tensors(
        [(n, p) for n, p in untied.model.named_parameters() if n != "model.norm.weight"]
    )
    pending = untied.handle.generate.remote(prompt(20, seed=9), Sampling(1.0, 480, seed=0))
    with pytest.raises(EngineError, match=r"lack 1 of the engine's parameters: \['model.norm.weight'\]"):
        untied.sync(replace(weights, layout=layout, data=ray.put(flat)))
    try:
        ray.get(pending, timeout=10)
    except EngineError as error:
        assert "activating weights 2 failed" in str(error)
    with pytest.raises(EngineError, match="is disabled"):
        untied.generate(prompt(20, seed=9), Sampling(1.0, 4))


def test_an_update_that_is_given_up_half_way_puts_the_engine_out_of_use():
    """A stand-in for vLLM, which hangs: the engine's own part is what is tested."""
    ended: list[object] = []
    engine = Engine.__new__(Engine)
    engine.index, engine.failure = 0, ""
    engine.llm = SimpleNamespace(
        pause_generation=lambda **_: asyncio.Event().wait(),
        output_processor=SimpleNamespace(propagate_error=ended.append),
        shutdown=lambda: ended.append("shut down"),
    )

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await engine.start_update()

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert engine.failure == "starting a weight update failed: CancelledError"
    assert len(ended) == 2 and ended[1] == "shut down"
    with pytest.raises(EngineError, match="is disabled"):
        asyncio.run(engine.start_update())


def test_a_dead_engine_fails_its_requests(tied):
    """Last for the tied engine."""
    [pid] = ray.get(tied.handle.in_worker.remote(lambda worker: os.getpid()))
    pending = tied.handle.generate.remote(prompt(20, seed=10), Sampling(1.0, 480, seed=0))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="engine 0"):
        ray.get(pending, timeout=30)
    with pytest.raises(EngineError, match="engine 0"):
        ray.get(tied.handle.generate.remote(prompt(20, seed=10), Sampling(1.0, 4)), timeout=30)
