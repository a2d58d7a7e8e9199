"""The distillation loss: its settings choose a divergence; what the learner puts in is what it compares."""

from __future__ import annotations

import pytest
import torch
from learner_toys import random_samples

from hindsight.configs.schema import Config, Rollout
from hindsight.learner.batching import collate
from hindsight.learner.distill import Likelihoods, distance
from hindsight.learner.divergence import forward_kl, jsd, reverse_kl, with_tail
from hindsight.learner.losses import signal_loss
from hindsight.learner.policy import PolicyRank
from hindsight.learner.signals import Distill


def signal(**settings) -> Distill:
    return Distill(Distill.Settings(name="distill", **settings))


def likelihoods(logits: torch.Tensor, tokens: torch.Tensor, k: int, chosen: torch.Tensor | None = None):
    """Those of a whole vocabulary, and the k likeliest tokens (or the `chosen` ones)."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.topk(k).indices if chosen is None else chosen
    return Likelihoods(logprobs.gather(1, tokens[:, None])[:, 0], logprobs.gather(1, chosen)), chosen


@pytest.fixture
def setting():
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(5, 7, dtype=torch.float64), torch.randint(0, 7, (5,))


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [("jsd", lambda p, q: jsd(p, q, 0.3)), ("reverse", reverse_kl), ("forward", forward_kl)],
)
def test_the_settings_choose_the_divergence(setting, divergence, expected):
    student, teacher, tokens = setting
    own, chosen = likelihoods(student, tokens, 3)
    other, _ = likelihoods(teacher, tokens, 3, chosen)
    right = expected(with_tail(own.candidates), with_tail(other.candidates))
    torch.testing.assert_close(distance(own, other, divergence, 0.3), right)
    total, sums = signal_loss(own, other, own.tokens.detach(), signal(divergence=divergence, beta=0.3))
    assert total.item() == pytest.approx(right.sum().item())
    assert sums["loss"] == pytest.approx(right.sum().item())
    assert sums["gap"] == pytest.approx((other.tokens - own.tokens).sum().item())


@pytest.mark.parametrize("divergence", ["jsd", "reverse", "forward", "sampled"])
def test_only_the_student_has_a_gradient_and_it_moves_to_the_teacher(setting, divergence):
    student, teacher, tokens = setting
    teacher = teacher.requires_grad_()
    distill = signal(divergence=divergence, tis_cap=0.0)
    for _ in range(200):
        own, chosen = likelihoods(student, tokens, 7)
        other, _ = likelihoods(teacher, tokens, 7, chosen)
        total, _ = signal_loss(own, other, own.tokens.detach(), distill)
        gradient, none = torch.autograd.grad(total, (student, teacher), allow_unused=True)
        assert none is None or not none.any()
        student = (student - 0.5 * gradient).detach().requires_grad_()
        if divergence == "sampled":  # sampled anew, as from an engine
            tokens = torch.multinomial(student.detach().softmax(-1), 1)[:, 0]
    apart = reverse_kl(student.log_softmax(-1), teacher.log_softmax(-1))
    assert apart.max() < (0.5 if divergence == "sampled" else 0.05)


def test_the_importance_ratio_is_capped_and_detached(setting):
    student, teacher, tokens = setting
    own, chosen = likelihoods(student, tokens, 7)
    other, _ = likelihoods(teacher, tokens, 7, chosen)
    distill = signal(divergence="reverse", tis_cap=2.0)
    plain, _ = signal_loss(own, other, own.tokens.detach(), distill)
    doubled, _ = signal_loss(own, other, own.tokens.detach() - 5.0, distill)  # the ratio is e^5
    assert doubled.item() == pytest.approx(2 * plain.item())
    halved, _ = signal_loss(own, other, own.tokens.detach() + torch.log(torch.tensor(2.0)), distill)
    assert halved.item() == pytest.approx(plain.item() / 2)
    slopes = [torch.autograd.grad(one, student, retain_graph=True)[0] for one in (plain, halved)]
    torch.testing.assert_close(slopes[1], slopes[0] / 2)


def test_no_token_gives_no_loss_and_no_gradient():
    empty = torch.zeros(0, requires_grad=True)
    own = Likelihoods(empty, torch.zeros(0, 4, requires_grad=True))
    total, sums = signal_loss(own, own, empty, signal())
    assert total.item() == 0.0 and sums["loss"] == 0.0


def test_distillation_has_a_temperature_of_its_own():
    """The policy loss has the one that the answers were sampled with; so has a signal that sets none."""
    rank, asked = object.__new__(PolicyRank), []
    rank.engine = lambda rows, places, targets, temperature, *_: asked.append(temperature)
    for settings in (Distill.Settings(name="distill"), Config().signal):
        rank.config = Config(rollout=Rollout(temperature=0.6), signal=settings)
        for objective in ("signal", "policy", "sft"):
            rank._forward(collate(random_samples(2)), objective)
    assert asked == [1.0, 0.6, 0.6, 0.6, 0.6, 0.6]
