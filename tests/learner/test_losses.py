"""The losses against a slow reference in plain Python, by hand, and by finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Loss
from learner.losses import Tokens, imitation, importance, merge, policy, report, surrogate


def reference(logprobs, entropies, tokens, loss, strength, clip):
    """The whole policy loss, token by token, written from the equations."""
    total = 0.0
    columns = (tokens.advantages, tokens.old, tokens.rollout, tokens.teacher)
    for logprob, entropy, advantage, old, rollout, teacher in zip(
        logprobs.tolist(), entropies.tolist(), *(column.tolist() for column in columns), strict=True
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
        if loss.importance_cap:
            value *= min(math.exp(old - rollout), loss.importance_cap)
        total += value - loss.entropy * entropy
    return total


def tokens_of(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(count, generator=generator, dtype=dtype)

    teacher = torch.where(draw(0, 1) < 0.5, draw(-4, 0), math.nan)
    made = Tokens(draw(-3, 3), draw(-3, 0), draw(-3, 0), teacher)
    return draw(-3, 0), draw(0, 4), made


@settings(max_examples=60)
@given(
    st.integers(0, 40),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(
        [Loss(), Loss(dual_clip=0.0, importance_cap=0.0, entropy=0.0), Loss(0.1, 0.3, 1.5, 0.1, 1.0)]
    ),
)
def test_policy_equals_the_slow_reference(count, seed, strength, clip, loss):
    logprobs, entropies, tokens = tokens_of(count, seed)
    total, sums = policy(logprobs, entropies, tokens, loss, strength, clip)
    expected = reference(logprobs, entropies, tokens, loss, strength, clip)
    assert float(total) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert sums["loss"] == float(total)


def test_surrogate_by_hand():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    ratios = torch.tensor([1.5, 0.5, 0.5, 1.5, 9.0])
    value, clipped = surrogate(ratios.log(), torch.zeros(5), advantages, Loss())
    # A > 0: capped at 1.2, free below; A < 0: held at 0.8, free above, up to the dual clip at 3
    assert value.tolist() == pytest.approx([-1.2, -0.5, 0.8, 1.5, 3.0])
    assert clipped.tolist() == [True, False, True, False, False]


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
    # the teacher's gap is detached, so it is held where the current policy put it
    held = replace(tokens, teacher=torch.full_like(tokens.teacher, math.nan))
    logits = logprobs.clone().requires_grad_(True)

    def loss_of(values):
        return policy(values, entropies, held, Loss(), 0.5, 0.2)[0]

    assert torch.autograd.gradcheck(loss_of, (logits,), eps=1e-6, atol=1e-6)


def test_teacher_weights_carry_no_gradient_of_their_own():
    _, entropies, tokens = tokens_of(12, 3)
    gap = torch.linspace(-0.3, 0.3, 12, dtype=torch.float64)  # inside and outside of the trust region
    logprobs = (tokens.old + 0.1).requires_grad_(True)
    held = replace(tokens, teacher=logprobs.detach() + gap)
    policy(logprobs, entropies, held, Loss(dual_clip=0.0, importance_cap=0.0), 1.0, 0.2)[0].backward()
    weight = torch.exp(torch.sign(tokens.advantages) * gap).clamp(0.8, 1.2)
    torch.testing.assert_close(logprobs.grad, -tokens.advantages * weight * math.exp(0.1))


def test_no_strength_and_no_teacher_give_the_same_loss_and_gradient_to_the_bit():
    _, entropies, tokens = tokens_of(50, 0, torch.float32)
    results = []
    for held, strength in ((tokens, 0.0), (replace(tokens, teacher=tokens.teacher * math.nan), 0.5)):
        logprobs = tokens_of(50, 1, torch.float32)[0].requires_grad_(True)
        total, _ = policy(logprobs, entropies, held, Loss(), strength, 0.2)
        total.backward()
        results.append((total.detach(), logprobs.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_statistics_by_hand():
    old = torch.tensor([math.log(2.0), 0.0])
    tokens = Tokens(torch.tensor([1.0, -1.0]), old, torch.zeros(2), old + torch.tensor([0.1, math.nan]))
    _, sums = policy(old.clone(), torch.tensor([1.0, 3.0]), tokens, Loss(entropy=0.0), 0.5, 0.2)
    stats = report(merge([sums]), 2)
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
    whole = policy(logprobs, entropies, tokens, Loss(), 0.5, 0.2)[1]

    def piece(part):
        cut = Tokens(*(getattr(tokens, name)[part] for name in ("advantages", "old", "rollout", "teacher")))
        return policy(logprobs[part], entropies[part], cut, Loss(), 0.5, 0.2)[1]

    pieces = merge(piece(part) for part in (slice(0, 11), slice(11, 11), slice(11, 30)))
    assert pieces == pytest.approx(whole)


def test_imitation_is_the_weighted_negative_log_likelihood():
    logprobs = torch.tensor([-1.0, -2.0, -4.5], requires_grad=True)
    total, sums = imitation(logprobs, torch.ones(3), torch.tensor([1.0, 1.0, 0.5]))
    assert total.item() == 5.25 and report(merge([sums]), 2.5) == {"loss": 2.1, "entropy": 1.0}
    total.backward()
    assert logprobs.grad.tolist() == [-1.0, -1.0, -0.5]
