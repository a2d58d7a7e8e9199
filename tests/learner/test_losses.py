"""The losses against a slow reference in plain Python, by hand, and by finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.configs import registry
from hindsight.configs.method import Signal
from hindsight.configs.schema import Loss
from hindsight.configs.setting import setting
from hindsight.learner.batching import over_ranks
from hindsight.learner.distill import Likelihoods
from hindsight.learner.losses import (
    Tokens,
    denominator,
    importance,
    kl_divergence,
    merge,
    policy,
    report,
    sft_loss,
    signal_loss,
    surrogate,
    token_weights,
)
from hindsight.learner.samples import TrainingSample
from hindsight.learner.signals import Distill, NoSignal, Reweight, TeacherSignal, make_signal


def k3(d):
    """Of KL(π ‖ π_ref), with d = log π − log π_ref."""
    return math.exp(-d) - 1 + d


def reweighting(clip=0.2):
    return Reweight(Reweight.Settings(name="reweight", clip=clip))


def reference(logprobs, entropies, tokens, loss, strength, clip):
    """The whole policy loss, token by token, written from the equations."""
    total = 0.0
    columns = (logprobs, entropies, *vars(tokens).values())
    for logprob, entropy, advantage, old, rollout, _, teacher, anchor, share in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if not math.isnan(teacher):
            sign = (advantage > 0) - (advantage < 0)
            weight = math.exp(max(-20.0, min(20.0, sign * (teacher - logprob))))
            weight = max(1 - clip, min(1 + clip, weight))
            advantage *= (1 - strength) + strength * weight
        ratio = math.exp(logprob - old)
        clipped = max(1 - loss.clip_low, min(1 + loss.clip_high, ratio))
        value = -min(advantage * ratio, advantage * clipped)
        if advantage < 0 and loss.dual_clip:
            value = min(value, -loss.dual_clip * advantage)
        if loss.tis_cap:
            value *= min(math.exp(old - rollout), loss.tis_cap)
        penalty = loss.kl * k3(logprob - anchor)
        total += share * (value - loss.entropy * entropy + penalty)
    return total


def tokens_of(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(count, generator=generator, dtype=dtype)

    teacher = torch.where(draw(0, 1) < 0.5, draw(-4, 0), math.nan)
    lags = torch.arange(count, dtype=dtype) % 3
    made = Tokens(draw(-3, 3), draw(-3, 0), draw(-3, 0), lags, teacher, draw(-3, 0), draw(0, 1))
    return draw(-3, 0), draw(0, 4), made


@settings(max_examples=60)
@given(
    st.integers(0, 40),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(
        [
            Loss(),
            Loss(dual_clip=0.0, tis_cap=0.0, entropy=0.0, kl=0.3),
            Loss(0.1, 0.3, 1.5, 0.1, 1.0, kl=0.3),
            Loss(kl=0.01),
        ]
    ),
)
def test_policy_equals_the_slow_reference(count, seed, strength, clip, loss):
    logprobs, entropies, tokens = tokens_of(count, seed)
    total, sums = policy(logprobs, entropies, tokens, loss, reweighting(clip), strength)
    expected = reference(logprobs, entropies, tokens, loss, strength, clip)
    assert float(total) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert sums["loss"] == float(total)


def test_surrogate_by_hand():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    ratios = torch.tensor([1.5, 0.5, 0.5, 1.5, 9.0])
    value, clipped = surrogate(ratios.log(), torch.zeros(5), advantages, Loss())
    # A > 0: capped at 1.2, free below; A < 0: held at 0.8, free above, up to the dual clip at 3
    assert value.tolist() == pytest.approx([-1.2, -0.5, 0.8, 1.5, 3.0])
    assert clipped.tolist() == [True, False, True, False, True]


def test_dual_clip_stops_the_gradient_of_a_far_off_policy_token():
    for ratio, moves in ((2.9, True), (3.1, False)):
        logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
        surrogate(logprobs, torch.zeros(1), torch.tensor([-1.0]), Loss())[0].sum().backward()
        assert bool(logprobs.grad != 0) is moves


def test_importance_weights_are_capped_above_only():
    old, rollout = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([-5.0, 0.0, 5.0])
    assert importance(old, rollout, 2.0).tolist() == pytest.approx([2.0, 1.0, math.exp(-5)])
    assert importance(old, rollout, 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_gradient_equals_finite_differences(seed):
    logprobs, entropies, tokens = tokens_of(12, seed)
    # the teacher's gap is detached, so it stays where the current policy put it
    held = replace(tokens, teacher=torch.full_like(tokens.teacher, math.nan))
    logits = logprobs.clone().requires_grad_(True)

    def loss_of(values):
        return policy(values, entropies, held, Loss(kl=0.7), reweighting(), 0.5)[0]

    assert torch.autograd.gradcheck(loss_of, (logits,), eps=1e-6, atol=1e-6)


def test_teacher_weights_carry_no_gradient_of_their_own():
    _, entropies, tokens = tokens_of(12, 3)
    gap = torch.linspace(-0.3, 0.3, 12, dtype=torch.float64)  # inside and outside of the trust region
    logprobs = (tokens.old + 0.1).requires_grad_(True)
    held = replace(tokens, teacher=logprobs.detach() + gap)
    policy(logprobs, entropies, held, Loss(dual_clip=0.0, tis_cap=0.0), reweighting(), 1.0)[0].backward()
    weight = torch.exp(torch.sign(tokens.advantages) * gap).clamp(0.8, 1.2)
    torch.testing.assert_close(logprobs.grad, -tokens.weights * tokens.advantages * weight * math.exp(0.1))


def test_no_strength_and_no_teacher_give_the_same_loss_and_gradient_to_the_bit():
    _, entropies, tokens = tokens_of(50, 0, torch.float32)
    results = []
    for held, strength in ((tokens, 0.0), (replace(tokens, teacher=tokens.teacher * math.nan), 0.5)):
        logprobs = tokens_of(50, 1, torch.float32)[0].requires_grad_(True)
        total, _ = policy(logprobs, entropies, held, Loss(), reweighting(), strength)
        total.backward()
        results.append((total.detach(), logprobs.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 0.9))
def test_reward_alone_decides_the_sign_of_every_update(seed, strength, clip):
    """With a teacher on every token (RLSD) as with one on some (SERL)."""
    _, entropies, tokens = tokens_of(12, seed)
    scores = torch.linspace(-9, 9, 12, dtype=torch.float64)
    everywhere = replace(tokens, teacher=scores, weights=torch.ones_like(scores))
    logprobs = tokens.old.clone().requires_grad_(True)
    policy(logprobs, entropies, everywhere, Loss(entropy=0.0), reweighting(clip), strength)[0].backward()
    assert torch.equal(torch.sign(logprobs.grad), -torch.sign(tokens.advantages))


def test_statistics_by_hand():
    old = torch.tensor([math.log(2.0), 0.0])
    teacher, reference = old + torch.tensor([0.1, math.nan]), old - torch.tensor([0.2, 0.4])
    half = torch.full((2,), 0.5)
    lags = torch.tensor([1.0, 0.0])
    tokens = Tokens(torch.tensor([1.0, -1.0]), old, torch.zeros(2), lags, teacher, reference, half)
    loss = Loss(entropy=0.0, kl=0.1)
    total, sums = policy(old.clone(), torch.tensor([1.0, 3.0]), tokens, loss, reweighting(), 0.5)
    stats = report("policy", merge([sums]), tokens=2, denominator=4)
    assert stats["loss"] == pytest.approx(float(total) / 4)
    assert stats["kl"] == pytest.approx((k3(0.2) + k3(0.4)) / 2, rel=1e-5)
    assert stats["entropy"] == pytest.approx(2.0)
    assert stats["mismatch_kl"] == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert stats["mismatch_max"] == pytest.approx(math.log(2))
    assert stats["ess"] == pytest.approx((2 + 1) ** 2 / (2 * (4 + 1)))
    assert stats["teacher_tokens"] == 1
    assert stats["teacher_gap"] == pytest.approx(0.1)
    assert stats["weight_mean"] == pytest.approx(math.exp(0.1))
    assert stats["weight_clip_fraction"] == 0 and stats["clip_fraction"] == 0


def test_sums_of_pieces_are_the_sums_of_the_whole():
    logprobs, entropies, tokens = tokens_of(30, 7)
    whole = policy(logprobs, entropies, tokens, Loss(), reweighting(), 0.5)[1]

    def piece(part):
        cut = Tokens(*(column[part] for column in vars(tokens).values()))
        return policy(logprobs[part], entropies[part], cut, Loss(), reweighting(), 0.5)[1]

    pieces = merge(piece(part) for part in (slice(0, 11), slice(11, 11), slice(11, 30)))
    assert pieces == pytest.approx(whole)


def test_kl_by_hand():
    # π = 1/2, π_ref = 1/4: log ratio ln 2, r = 1/2
    logprob, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert float(kl_divergence(logprob, reference)) == pytest.approx(0.5 - 1 + math.log(2))
    assert float(kl_divergence(logprob, logprob)) == 0


def test_kl_over_a_whole_distribution():
    """Summed over every token, weighted by its probability, as sampling would on average."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    sampled = logprobs.detach().exp()
    estimate = (sampled * kl_divergence(logprobs, reference)).sum()
    exact = (sampled * (logprobs.detach() - reference)).sum()
    assert float(estimate.detach()) == pytest.approx(float(exact))  # unbiased
    # its gradient is that of KL(π_ref ‖ π)
    (gradient,) = torch.autograd.grad(estimate, logits)
    torch.testing.assert_close(gradient, sampled - reference.exp())


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=20))
def test_kl_is_never_negative(pairs):
    logprobs, reference = torch.tensor(pairs, dtype=torch.float64).T
    assert (kl_divergence(logprobs, reference) >= -1e-12).all()


def test_a_penalty_without_a_reference_is_refused():
    logprobs, entropies, tokens = tokens_of(3, 0)
    missing = replace(tokens, reference=torch.tensor([-1.0, math.nan, -1.0]))
    policy(logprobs, entropies, missing, Loss(), reweighting(), 0.5)
    with pytest.raises(ValueError, match=r"loss\.kl = 0\.01 needs"):
        policy(logprobs, entropies, missing, Loss(kl=0.01), reweighting(), 0.5)


def test_aggregations_by_hand():
    # two samples of one and three tokens, with the losses 8 and 1 2 3
    rows, values = torch.tensor([0, 1, 1, 1]), torch.tensor([8.0, 1.0, 2.0, 3.0])
    held = [sample_of(1), sample_of(3)]
    found = {
        mode: float((token_weights(rows, mode) * values).sum())
        / denominator(held, Loss(aggregation=mode, constant=4.0))
        for mode in ("token-mean", "sequence-mean", "constant")
    }
    assert found == pytest.approx(
        {"token-mean": 14 / 4, "sequence-mean": (8 + 2) / 2, "constant": (8 / 4 + 6 / 4) / 2}
    )


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=20),
    st.integers(1, 100),
    st.integers(1, 4),
    st.sampled_from(["token-mean", "sequence-mean", "constant"]),
)
def test_ranks_and_micro_batches_change_no_mean(sizes, budget, ranks, aggregation):
    """Each rank's sums over its micro-batches, as `Rank.update` scales them and DeepSpeed averages them."""
    loss = Loss(aggregation=aggregation, constant=7.0)
    values = [[100.0 * index + number for number in range(size)] for index, size in enumerate(sizes)]
    whole = denominator([sample_of(size) for size in sizes], loss)
    per_rank = []
    for micros in over_ranks([np.full(size, 7, np.int32) for size in sizes], budget, ranks):
        sums = 0.0
        for micro in micros:
            owners = torch.tensor(
                [place for place, index in enumerate(micro) for _ in values[index]], dtype=torch.int64
            )
            flat = torch.tensor([value for index in micro for value in values[index]])
            sums += float((token_weights(owners, aggregation) * flat).sum())
        per_rank.append(sums * ranks / whole)
    expected = {
        "token-mean": sum(map(sum, values)) / sum(sizes),
        "sequence-mean": sum(sum(row) / len(row) for row in values) / len(values),
        "constant": sum(sum(row) / 7.0 for row in values) / len(values),
    }
    assert sum(per_rank) / ranks == pytest.approx(expected[aggregation], rel=1e-5)


def sample_of(size):
    """A sample of so many sampled tokens, of which only the number matters."""
    return TrainingSample(np.zeros(size + 1, np.int32), np.arange(1, size + 1, dtype=np.int32))


def test_sft_is_the_weighted_negative_log_likelihood():
    logprobs = torch.tensor([-1.0, -2.0, -4.5], requires_grad=True)
    total, sums = sft_loss(logprobs, torch.ones(3), torch.tensor([1.0, 1.0, 0.5]))
    assert total.item() == 5.25 and report("sft", merge([sums]), 2.5, 2.5) == {
        "loss": 2.1,
        "entropy": 1.0,
    }
    total.backward()
    assert logprobs.grad.tolist() == [-1.0, -1.0, -0.5]


class Boost(TeacherSignal):
    """A signal of one's own: more advantage where the teacher agrees, and a squared distance as its loss."""

    @dataclass(frozen=True)
    class Settings(Signal):
        factor: float = setting(3.0, "by how much")

        @property
        def loss_weight(self) -> float:
            return 0.5

    def shape(self, advantages, gap, strength):
        assert not gap.requires_grad
        return torch.where(gap > 0, advantages * (1 + strength * self.settings.factor), advantages)

    def weights(self, advantages, gap):
        return torch.where(gap > 0, self.settings.factor, 1.0), torch.ones_like(gap)

    def loss(self, student, teacher, old):
        return (student.tokens - teacher.tokens).square() + (student.tokens.detach() - old)


@pytest.fixture
def boost(monkeypatch):
    """The signal as a run would make it, of a setting that names it."""
    monkeypatch.setattr(registry, "PLUGIN_FOLDERS", [str(Path.cwd())])  # so that sys.path stays as it is
    return make_signal(Boost.Settings(name=f"{__name__}:Boost", factor=2.0))


def test_a_signal_of_ones_own_shapes_the_policy_loss(boost):
    _, entropies, tokens = tokens_of(40, 5)
    agreed = tokens.teacher > tokens.old  # never where it did not score
    by_hand = replace(tokens, advantages=torch.where(agreed, 2 * tokens.advantages, tokens.advantages))
    found = []
    for held, signal in ((tokens, boost), (by_hand, TeacherSignal(Signal()))):
        logprobs = tokens.old.clone().requires_grad_(True)
        total, sums = policy(logprobs, entropies, held, Loss(), signal, 0.5)  # 1 + ½·2
        total.backward()
        found.append((total.detach(), logprobs.grad, report("policy", merge([sums]), 40, 40)))
    (own, slope, stats), (right, right_slope, plain) = found
    torch.testing.assert_close(own, right)
    torch.testing.assert_close(slope, right_slope)
    assert 0 < agreed.sum() < stats["teacher_tokens"] < 40
    share = float(agreed.sum()) / stats["teacher_tokens"]
    assert stats["weight_mean"] == pytest.approx(1 + share)
    assert stats["weight_clip_fraction"] == pytest.approx(share)
    assert (plain["weight_mean"], plain["weight_clip_fraction"]) == (1, 0)  # unless a signal says otherwise


def test_a_signal_of_ones_own_has_a_loss_of_its_own(boost):
    student = torch.tensor([-1.0, -2.0], requires_grad=True)
    teacher, old = torch.tensor([-1.5, -1.0]), torch.tensor([-1.25, -2.0])
    own, other = (Likelihoods(tokens, torch.zeros(2, 0)) for tokens in (student, teacher))
    total, sums = signal_loss(own, other, old, boost)
    assert total.item() == pytest.approx(0.25 + 1.0 + 0.25)
    assert report("signal", merge([sums]), 2, 2) == pytest.approx(
        {"signal_loss": 0.75, "signal_gap": 0.25, "signal_tokens": 2}
    )
    total.backward()
    assert student.grad.tolist() == [1.0, -2.0]


def test_a_signal_with_a_weight_and_no_loss_is_told_so():
    nothing = Likelihoods(torch.zeros(1), torch.zeros(1, 0))
    with pytest.raises(NotImplementedError, match="Reweight has a loss_weight and no loss"):
        signal_loss(nothing, nothing, torch.zeros(1), reweighting())


def test_the_settings_name_their_signal():
    for kind, chosen in (
        (NoSignal, Signal()),
        (Reweight, Reweight.Settings(name="reweight")),
        (Distill, Distill.Settings(name="distill")),
    ):
        made = make_signal(chosen)
        assert type(made) is kind and made.settings is chosen
    assert make_signal(Signal()).strength(0) == 0.0 and make_signal(Signal()).num_candidates == 0
    assert make_signal(Distill.Settings(name="distill", top_k=7)).num_candidates == 7
    assert make_signal(Distill.Settings(name="distill", divergence="sampled")).num_candidates == 0
