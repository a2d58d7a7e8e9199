"""Log-probs at chosen positions against the model's own logits; packing changes neither loss nor gradient."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_toys import REWEIGHT, VOCABULARY, held_tokens, logits_of, random_samples, tiny_llama, token_mean

from hindsight.configs.schema import Loss
from hindsight.learner import logprobs as module
from hindsight.learner.batching import collate
from hindsight.learner.logprobs import TokenLogprobs, UnsupportedModel
from hindsight.learner.losses import Tokens, policy
from hindsight.learner.packing import pack_rows
from hindsight.learner.samples import TrainingSample


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1024, 3])
def test_equal_to_the_models_own_logits(tied, temperature, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    lm, samples = tiny_llama(tied), random_samples(5)
    batch = collate(samples)
    made, entropy, _ = TokenLogprobs(lm)(batch.packed, batch.places, batch.targets, temperature)
    table = (logits_of(lm, samples) / temperature).log_softmax(-1)
    torch.testing.assert_close(made, table.gather(1, batch.targets[:, None])[:, 0])
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=table).entropy())


@pytest.mark.parametrize("chunk", [1024, 3])
def test_candidates_and_the_likeliest(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model, samples = TokenLogprobs(tiny_llama()), random_samples(5)
    batch = collate(samples)
    place = (batch.packed, batch.places, batch.targets, 0.7)
    table = (logits_of(model.lm, samples) / 0.7).log_softmax(-1)
    chosen = model(*place, None, 4).candidates
    torch.testing.assert_close(table.gather(1, chosen), table.topk(4).values)
    torch.testing.assert_close(model(*place, chosen).candidates, table.topk(4).values)
    assert model(*place).candidates.shape == (len(batch.targets), 0)


def test_chunks_change_no_gradient(monkeypatch):
    model = TokenLogprobs(tiny_llama())
    samples = random_samples(6)
    whole = token_mean(model, samples, 10**6)
    monkeypatch.setattr(module, "CHUNK", 4)
    chunked = token_mean(model, samples, 10**6)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(chunked[1], whole[1])


@settings(max_examples=12, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 1000),
    st.integers(4, 120),
    st.sampled_from(["token-mean", "sequence-mean", "constant"]),
    st.randoms(use_true_random=False),
)
def test_packing_and_order_change_neither_loss_nor_gradient(count, seed, budget, aggregation, random):
    model, samples = TokenLogprobs(tiny_llama()), random_samples(count, seed)
    loss = Loss(aggregation=aggregation, constant=10.0, kl=0.1)
    order = list(range(count))
    random.shuffle(order)
    whole = token_mean(model, samples, 10**6, loss)
    packed = token_mean(model, samples, budget, loss, order=order)
    assert packed[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-5)
    torch.testing.assert_close(packed[1], whole[1], rtol=1e-3, atol=1e-5)


def test_gradient_of_a_weight_equals_finite_differences():
    model = TokenLogprobs(tiny_llama(dtype=torch.float64))
    samples = random_samples(4, teacher=False)
    loss = Loss(tis_cap=0.0, entropy=0.01)
    batch = collate(samples)

    def value():
        logprobs, entropy, _ = model(batch.packed, batch.places, batch.targets)
        held = Tokens(*(column.double() for column in vars(held_tokens(batch, old)).values()))
        return policy(logprobs.double(), entropy.double(), held, loss, REWEIGHT, 0.5)[0]

    old = model(batch.packed, batch.places, batch.targets)[0].detach().double()
    value().backward()
    weight = model.lm.model.layers[0].self_attn.q_proj.weight
    for place in ((0, 0), (5, 9), (31, 31)):
        step, sides = 1e-3, []  # logits are taken in float32, hence the wide step
        for sign in (1, -1):
            with torch.no_grad():
                weight[place] += sign * step
                sides.append(float(value()))
                weight[place] -= sign * step
        assert float(weight.grad[place]) == pytest.approx(
            (sides[0] - sides[1]) / (2 * step), rel=0.02, abs=1e-3
        )


def test_an_empty_batch_runs_and_moves_nothing():
    model, batch = TokenLogprobs(tiny_llama()), collate([])
    logprobs, entropy, _ = model(batch.packed, batch.places, batch.targets)
    held = held_tokens(batch, logprobs.detach())
    policy(logprobs, entropy, held, Loss(), REWEIGHT, 0.5)[0].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_names_are_the_models_own():
    lm = tiny_llama()
    names = [name.removeprefix(TokenLogprobs.PREFIX) for name, _ in TokenLogprobs(lm).named_parameters()]
    assert names == [name for name, _ in lm.named_parameters()]


def test_a_model_with_capped_logits_is_refused():
    capped = SimpleNamespace(config=SimpleNamespace(final_logit_softcapping=30.0))
    with pytest.raises(UnsupportedModel, match="final_logit_softcapping"):
        TokenLogprobs(capped)


def test_an_update_follows_a_frozen_teacher():
    """Two actions of equal return, one preferred by the teacher: weights 1 + ε and 1 − ε lift its log-odds.

    One small gradient step lifts them, to first order, by lr · ε · |g1 − g2|² / tokens more than equal
    weights do, where g1 and g2 are the gradients of the two log-probs.
    """
    first, second, lr = 7, 9, 1e-4

    def table(model):
        targets, at = torch.arange(VOCABULARY), torch.full((VOCABULARY,), 2)
        return model(pack_rows([np.array([1, 2, 3])])[0], at, targets)[0]

    def odds_after(preference, strength):
        model = TokenLogprobs(tiny_llama())
        samples = [
            TrainingSample(
                np.array([1, 2, 3, token], np.int32),
                np.array([3], np.int32),
                rollout_logprobs=np.full(1, start[token], np.float32),
                advantages=np.ones(1, np.float32),
                teacher_logprobs=np.full(1, start[token] + gap, np.float32),
            )
            for token, gap in ((first, preference), (second, -preference))
        ]
        token_mean(model, samples, 1000, Loss(entropy=0.0), strength)
        torch.optim.SGD(model.parameters(), lr=lr).step()
        after = table(model).detach()
        return float(after[first] - after[second])

    model = TokenLogprobs(tiny_llama())
    start = table(model)
    slope = torch.autograd.grad(start[first] - start[second], list(model.parameters()))
    start = start.detach().numpy()
    lift = lr * 0.2 * sum(float(part.square().sum()) for part in slope) / 2
    plain = odds_after(0.5, strength=0.0)
    assert odds_after(0.5, strength=1.0) - plain == pytest.approx(lift, rel=0.05)
    assert plain - odds_after(-0.5, strength=1.0) == pytest.approx(lift, rel=0.05)
    assert odds_after(0.5, strength=0.5) - plain == pytest.approx(lift / 2, rel=0.05)
