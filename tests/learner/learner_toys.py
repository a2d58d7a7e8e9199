"""Small hand-made trajectories, samples and models for the learner's tests."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hindsight.configs.schema import Loss
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.batching import collate, over_ranks
from hindsight.learner.losses import Tokens, denominator, policy, token_weights
from hindsight.learner.packing import enable_packing
from hindsight.learner.samples import TrainingSample
from hindsight.learner.signals import Reweight
from hindsight.rollout.types import Group, Span, TokenSequence, Trajectory, Turn

TASK = TaskSpec("t", "toy", "find", "train")
VOCABULARY = 64
REWEIGHT = Reweight(Reweight.Settings(name="reweight"))


def turn(sequence, start, end, span=None, action="look", valid=True, state="a room"):
    seen = Observation("a room", state_key=state)
    result = StepResult(seen, "", 0.0, False, False, False)
    return Turn(sequence, start, end, span and Span(*span), seen, "", action, valid, result)


def sequence(length, sampled, seed=0):
    """A sequence whose token i is i + 1; `sampled` are (start, end) ranges: log-prob -i / 10, version i."""
    logprobs, versions = np.full(length, np.nan, np.float32), np.full(length, -1, np.int32)
    for start, end in sampled:
        logprobs[start:end] = -np.arange(start, end) / 10
        versions[start:end] = np.arange(start, end)
    return TokenSequence(np.arange(1, length + 1, dtype=np.int32), logprobs, versions)


def trajectory(turns, success, length=20):
    """One growing chat that holds all turns."""
    return Trajectory(
        TASK,
        (sequence(length, [(t.start, t.end) for t in turns]),),
        tuple(turns),
        success,
        float(success),
        "terminated",
    )


def group(*trajectories, ordinal=0):
    return Group(ordinal, TASK, trajectories)


def visits(success, states, malformed=()):
    """One turn of two sampled tokens in each state; the turns numbered in `malformed` did not parse."""
    spans = [(3 * number + 1, 3 * number + 3) for number in range(len(states))]
    turns = [
        turn(0, *span, action=None if number in malformed else "look", state=state)
        for number, (span, state) in enumerate(zip(spans, states, strict=True))
    ]
    return trajectory(turns, success, length=3 * len(states) + 1)


def random_samples(count, seed=0, longest=24, teacher=True):
    """Samples of 4 … `longest` tokens; about half of each bears loss, and about half of that was scored."""
    rng, reference = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    samples = []
    for _ in range(count):
        length = int(rng.integers(4, longest + 1))
        positions = np.flatnonzero(rng.random(length) < 0.5).astype(np.int32)
        positions = positions[positions > 0] if (positions > 0).any() else np.array([length - 1], np.int32)
        size = len(positions)
        scores = rng.uniform(-6, -2, size).astype(np.float32)
        scores[(rng.random(size) < 0.5) | (not teacher)] = np.nan
        samples.append(
            TrainingSample(
                ids=rng.integers(1, VOCABULARY, length).astype(np.int32),
                positions=positions,
                advantages=rng.normal(size=size).astype(np.float32),
                rollout_logprobs=rng.uniform(-5, -3, size).astype(np.float32),
                teacher_logprobs=scores,
                reference_logprobs=reference.uniform(-6, -2, size).astype(np.float32),
            )
        )
    return samples


def tiny_llama(tied=True, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    lm = LlamaForCausalLM(shape).to(dtype)
    assert enable_packing(lm, torch.device("cpu")) == ""
    return lm


def logits_of(lm, samples):
    """(P, vocabulary) the model's own logits at all positions of all samples, each read by itself."""
    lm.set_attn_implementation("sdpa")
    tables = [
        lm(torch.from_numpy(one.ids.astype(np.int64))[None]).logits[0][one.positions - 1] for one in samples
    ]
    enable_packing(lm, torch.device("cpu"))
    return torch.cat(tables)


def held_tokens(batch, old, aggregation="token-mean"):
    """What the policy loss holds fixed of a micro-batch."""
    weights = token_weights(batch.rows, aggregation)
    return Tokens(batch.advantages, old, batch.rollout, batch.lags, batch.teacher, batch.reference, weights)


def token_mean(model, samples, budget, loss=None, strength=0.5, order=None):
    """The policy loss of all samples and its gradient, summed over micro-batches as a rank does."""
    loss = loss or Loss()
    samples = [samples[i] for i in order] if order else samples
    whole_batch = denominator(samples, loss)
    model.zero_grad()
    whole = 0.0
    for indices in over_ranks([sample.ids for sample in samples], budget, 1)[0]:
        batch = collate([samples[i] for i in indices])
        logprobs, entropy, _ = model(batch.packed, batch.places, batch.targets)
        held = held_tokens(batch, logprobs.detach(), loss.aggregation)
        total, _ = policy(logprobs, entropy, held, loss, REWEIGHT, strength)
        (total / whole_batch).backward()
        whole += float(total.detach()) / whole_batch
    return whole, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
