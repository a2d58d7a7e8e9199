"""Shared-prefix scoring equals scoring one context at a time; weights load whole or not at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from teacher_toys import make_group, make_model, make_renderer
from transformers import GraniteConfig, GraniteForCausalLM

from hindsight.configs.schema import Cluster, Config, Feedback, Model
from hindsight.configs.schema import Teacher as Settings
from hindsight.feedback.hints import gather_hints
from hindsight.rollout.types import Span
from hindsight.rollout.weights import WeightSet, checksum, pack_tensors
from hindsight.teacher import plan
from hindsight.teacher.contexts import ContextLimits, ScoreRequest, build_requests
from hindsight.teacher.cpu_attention import NAME, use_products
from hindsight.teacher.scorer import (
    Outdated,
    ScorerError,
    SpanScorer,
    TeacherScorer,
    WeightsError,
    load_strictly,
    teacher_env,
)

LIMITS = ContextLimits(section=64, context=2048)


def random_case(seed):
    """Three trajectories of one or two sequences, with many requests at random cuts."""
    draw = np.random.default_rng(seed)
    lengths = [(60,), (35, 50), (20,)]
    sequences = [[draw.integers(1, 500, n).astype(np.int32) for n in shape] for shape in lengths]
    requests = []
    for turn in range(12):
        trajectory = int(draw.integers(3))
        sequence = int(draw.integers(len(lengths[trajectory])))
        cut = int(draw.integers(1, lengths[trajectory][sequence] + 1))
        tail = draw.integers(1, 500, int(draw.integers(2, 15))).astype(np.int32)
        start = int(draw.integers(1, len(tail)))
        requests.append(ScoreRequest(trajectory, turn, sequence, cut, tail, Span(start, len(tail))))
    return sequences, requests


@torch.no_grad()
def naive(model, temperature, sequences, requests):
    """One forward per request over its whole context, logits at all positions."""
    scores = []
    for request in requests:
        ids = np.concatenate([sequences[request.trajectory][request.sequence][: request.cut], request.tail])
        logits = model(torch.from_numpy(ids).long()[None]).logits[0]
        logprobs = (logits / temperature).log_softmax(-1)
        wanted = range(request.cut + request.span.start, request.cut + request.span.end)
        scores.append(np.array([float(logprobs[at - 1, ids[at]]) for at in wanted], dtype=np.float32))
    return scores


def assert_equal_scores(scored, expected):
    found = [one.logprobs for one in scored]
    assert [score.shape for score in found] == [score.shape for score in expected]
    for score, right in zip(found, expected, strict=True):
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, right, atol=1e-4)


@pytest.mark.parametrize("run", [1, 20, 512])
@pytest.mark.parametrize("budget", [80, 200, 4096])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("products", [False, True])
def test_shared_prefixes_change_no_score(budget, seed, run, products, monkeypatch):
    monkeypatch.setattr(plan, "TAIL_TOKENS", run)
    model, (sequences, requests) = make_model(), random_case(seed)
    expected = naive(model, 0.7, sequences, requests)
    if products:
        use_products(model)
    found = SpanScorer(model, budget, temperature=0.7).score(sequences, requests)
    assert_equal_scores(found, expected)
    assert (
        np.ptp(np.concatenate([one.logprobs for one in found])) > 1
    )  # sharp enough that a wrong context would show


@pytest.mark.parametrize("preset", ["history", "window"])
def test_rollout_scores_equal_naive_ones(preset):
    renderer, model = make_renderer(preset), make_model()
    group = make_group(renderer)
    sequences = [[sequence.ids for sequence in trajectory.sequences] for trajectory in group.trajectories]
    requests = build_requests(
        group,
        asyncio.run(gather_hints(group, Feedback(sources=["immediate"]))).texts,
        renderer.close_ids,
        renderer.encode,
        LIMITS,
    )
    scorer = SpanScorer(model, 2048, temperature=1.0)
    assert_equal_scores(scorer.score(sequences, requests), naive(model, 1.0, sequences, requests))
    dense = sum(request.cut + len(request.tail) for request in requests)
    most = 1.0 if preset == "history" else 1 / (1 - plan.PADDING)  # windows share no prefix
    assert scorer.computed < most * dense


@pytest.mark.parametrize("budget", [80, 4096])
def test_candidates_are_scored_where_the_tokens_are(budget):
    """Asked for the whole vocabulary, it gives the distribution that predicts each token of the span."""
    model, (sequences, requests) = make_model(), random_case(3)
    vocabulary = model.config.vocab_size
    everything = [
        replace(request, candidates=np.tile(np.arange(vocabulary, dtype=np.int32), (len(request.span), 1)))
        for request in requests
    ]
    scored = SpanScorer(model, budget, temperature=0.7).score(sequences, everything)
    assert_equal_scores(scored, naive(model, 0.7, sequences, requests))
    for request, one in zip(requests, scored, strict=True):
        assert one.candidates.shape == (len(request.span), vocabulary)
        np.testing.assert_allclose(np.exp(one.candidates).sum(axis=1), 1.0, atol=1e-4)
        tokens = request.tail[request.span.start : request.span.end]
        np.testing.assert_allclose(one.candidates[np.arange(len(tokens)), tokens], one.logprobs, atol=1e-5)


def test_nothing_to_score():
    assert SpanScorer(make_model(), 64, 1.0).score([], []) == []


def test_models_that_break_the_method_are_refused():
    with pytest.raises(ScorerError, match="full attention"):
        SpanScorer(make_model(layer_types=["full_attention", "sliding_attention", "full_attention"]), 64, 1.0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    capped = GraniteForCausalLM(GraniteConfig(**shape, **heads, logits_scaling=2.0))
    with pytest.raises(ScorerError, match="caps its logits"):
        SpanScorer(capped, 64, 1.0)


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_weights_score_like_their_model(tied):
    student, teacher = (
        make_model(seed=1, tie_word_embeddings=tied),
        make_model(seed=2, tie_word_embeddings=tied),
    )
    sequences, requests = random_case(0)
    expected = naive(student, 1.0, sequences, requests)
    scorer = SpanScorer(teacher, 4096, 1.0)
    assert not np.allclose(scorer.score(sequences, requests)[0].logprobs, expected[0], atol=0.1)
    load_strictly(dict(teacher.named_parameters()), student.named_parameters())
    assert_equal_scores(scorer.score(sequences, requests), expected)


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice", "shape"])
def test_weights_that_do_not_fit_change_nothing(fault):
    student, teacher = make_model(seed=1), make_model(seed=2)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    given = list(student.named_parameters())
    if fault == "missing":
        given.pop()
    elif fault == "unknown":
        given.append(("other.weight", torch.zeros(2)))
    elif fault == "twice":
        given.append(given[0])
    else:
        given[0] = (given[0][0], given[0][1][:-1])
    with pytest.raises(WeightsError):
        load_strictly(dict(teacher.named_parameters()), given)
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())


def test_actor_takes_verified_weights(tmp_path, ray_local):
    make_model(seed=2).save_pretrained(tmp_path)
    config = Config(model=Model(dtype="float32"), teacher=Settings(batch_tokens=1024))
    actor = ray.remote(TeacherScorer).options(num_cpus=0.1, runtime_env={"env_vars": teacher_env(config)})
    teacher, student = actor.remote(str(tmp_path), config, 1.0), make_model(seed=1)
    assert ray.get(teacher.ready.remote()) == {"version": 0, "context": 1024}

    flat, layout, _ = pack_tensors(student.named_parameters())
    reference = ray.put(flat)
    with pytest.raises(WeightsError, match="arrived as"):
        ray.get(
            teacher.load_weights.remote(
                WeightSet(3, layout, checksum(np.zeros_like(flat), layout), reference)
            )
        )
    ray.get(teacher.load_weights.remote(WeightSet(3, layout, checksum(flat, layout), reference)))

    sequences, requests = random_case(0)
    found = ray.get(teacher.score.remote(sequences, requests))
    assert_equal_scores(found, naive(student, 1.0, sequences, requests))
    assert ray.get(teacher.ready.remote())["version"] == 3


@pytest.mark.parametrize(("dtype", "attention"), [("bfloat16", NAME), ("float32", "sdpa")])
def test_on_a_cpu_a_teacher_in_bfloat16_attends_by_products(dtype, attention, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    config = Config(model=Model(dtype=dtype), teacher=Settings(batch_tokens=1024))
    sequences, requests = random_case(0)
    one = TeacherScorer(str(tmp_path / "model"), config, 1.0)
    assert one._scorer.model.config._attn_implementation == attention
    exact = naive(make_model(), 1.0, sequences, requests)
    for scored, right in zip(one.score(sequences, requests), exact, strict=True):
        np.testing.assert_allclose(scored.logprobs, right, atol=0.2)


def test_a_teacher_averages_in_float32_what_it_holds_in_bfloat16(tmp_path):
    """Against an average in float64; a step of bfloat16 is some 25 times what one refresh moves here."""
    start = make_model(seed=2).to(torch.bfloat16)
    start.save_pretrained(tmp_path / "model")
    config = Config(model=Model(dtype="bfloat16"), teacher=Settings(batch_tokens=1024))
    one = TeacherScorer(str(tmp_path / "model"), config, 1.0, share=0.05)
    expected = {name: value.detach().double() for name, value in start.named_parameters()}

    def refresh(teacher, step):
        nudge = torch.Generator().manual_seed(step)
        weights = {
            name: (value + 0.01 * torch.rand(value.shape, generator=nudge) * value.abs()).bfloat16()
            for name, value in start.state_dict().items()
            if name in expected
        }
        teacher._take(weights.items(), 0.05)
        return weights

    for step in range(4):
        if step == 3:  # a resumed run's
            one.save(str(tmp_path / "teacher.safetensors"))
            one = TeacherScorer(str(tmp_path / "model"), config, 1.0, share=0.05)
            one.load(str(tmp_path / "teacher.safetensors"))
        given = refresh(one, step)
        for name, value in expected.items():
            value.lerp_(given[name].double(), 0.05)
    for name, value in expected.items():
        torch.testing.assert_close(one._average[name].double(), value, rtol=1e-6, atol=1e-9)
        assert torch.equal(one._held[name], one._average[name].bfloat16())
    with pytest.raises(WeightsError):
        one._take(list(given.items())[1:], 0.5)
    assert all(
        torch.allclose(one._average[name].double(), value, rtol=1e-6) for name, value in expected.items()
    )


def test_a_new_process_refuses_what_it_lacks_and_a_snapshot_brings_it(tmp_path, monkeypatch):
    start = make_model(seed=2)
    start.save_pretrained(tmp_path / "model")
    config = Config(model=Model(dtype="float32"), teacher=Settings(batch_tokens=1024))

    def process():
        return TeacherScorer(str(tmp_path / "model"), config, 1.0, share=0.05)

    monkeypatch.setattr(ray, "get", lambda held: held)
    flat, layout, _ = pack_tensors(make_model(seed=3).named_parameters())
    weights = WeightSet(4, layout, checksum(flat, layout), flat)
    old = process()
    old.load_weights(weights, whole=False, since=0)
    (version, layout, total), kept = old.snapshot(4)
    new = process()
    for refused in (
        lambda: new.score([], [], 4),
        lambda: new.load_weights(weights, whole=False, since=4),
        lambda: new.save(str(tmp_path / "teacher.safetensors"), 4),
        lambda: new.snapshot(4),
    ):
        with pytest.raises(Outdated, match="has weights 0, and 4 are asked for"):
            refused()
    new.load_weights(WeightSet(version, layout, total, kept))
    assert new.score([], [], 4) == []
    for name, value in old._average.items():
        assert torch.equal(value, new._average[name])


def test_process_environment_bounds_threads():
    config = Config(cluster=Cluster(threads=3))
    assert teacher_env(config)["OMP_NUM_THREADS"] == "3"
    assert teacher_env(config)["OMP_WAIT_POLICY"] == "passive"
