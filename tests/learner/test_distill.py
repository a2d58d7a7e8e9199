"""The distillation loss: its settings choose a distance; what the learner puts in is what it compares."""

from __future__ import annotations

import pytest
import torch
from learner_toys import random_samples

from hindsight.configs.schema import Config, Distill, Rollout
from hindsight.learner.batching import collate
from hindsight.learner.distill import Likelihoods, distill
from hindsight.learner.divergence import forward_kl, jsd, reverse_kl, with_tail
from hindsight.learner.policy import PolicyRank


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
    ("divergence", "distance"),
    [("jsd", lambda p, q: jsd(p, q, 0.3)), ("reverse", reverse_kl), ("forward", forward_kl)],
)
def test_the_settings_choose_the_distance(setting, divergence, distance):
    student, teacher, tokens = setting
    own, chosen = likelihoods(student, tokens, 3)
    other, _ = likelihoods(teacher, tokens, 3, chosen)
    total, sums = distill(own, other, own.tokens.detach(), Distill(1.0, divergence, beta=0.3))
    expected = distance(with_tail(own.candidates), with_tail(other.candidates)).sum()
    assert total.item() == pytest.approx(expected.item())
    assert sums["distance"] == pytest.approx(expected.item())


@pytest.mark.parametrize("divergence", ["jsd", "reverse", "forward", "sampled"])
def test_only_the_student_has_a_gradient_and_it_moves_to_the_teacher(setting, divergence):
    student, teacher, tokens = setting
    teacher = teacher.requires_grad_()
    settings = Distill(1.0, divergence, tis_cap=0.0)
    for _ in range(200):
        own, chosen = likelihoods(student, tokens, 7)
        other, _ = likelihoods(teacher, tokens, 7, chosen)
        total, _ = distill(own, other, own.tokens.detach(), settings)
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
    settings = Distill(1.0, "reverse", tis_cap=2.0)
    plain, _ = distill(own, other, own.tokens.detach(), settings)
    doubled, _ = distill(own, other, own.tokens.detach() - 5.0, settings)  # the ratio is e^5
    assert doubled.item() == pytest.approx(2 * plain.item())
    halved, _ = distill(own, other, own.tokens.detach() + torch.log(torch.tensor(2.0)), settings)
    assert halved.item() == pytest.approx(plain.item() / 2)


def test_no_token_gives_no_loss_and_no_gradient():
    empty = torch.zeros(0, requires_grad=True)
    own = Likelihoods(empty, torch.zeros(0, 4, requires_grad=True))
    total, sums = distill(own, own, empty, Distill(1.0))
    assert total.item() == 0.0 and sums["loss"] == 0.0


def test_distillation_has_a_temperature_of_its_own():
    """The policy loss has the one that the answers were sampled with."""
    rank, asked = object.__new__(PolicyRank), []
    rank.config = Config(rollout=Rollout(temperature=0.6), distill=Distill(temperature=1.25))
    rank.engine = lambda ids, samples, cols, targets, temperature, *_: asked.append(temperature)
    for objective in ("distill", "policy", "imitation"):
        rank._forward(collate(random_samples(2)), objective)
    assert asked == [1.25, 0.6, 0.6]
