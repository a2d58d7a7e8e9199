"""Distances between distributions, against sums over plain floats, finite differences and each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.learner.divergence import forward_kl, jsd, kl, reverse_kl, sampled_reverse_kl, with_tail

LN2 = math.log(2.0)


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def naive_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


logit = st.floats(-6, 6, allow_nan=False)
pairs = st.integers(2, 6).flatmap(
    lambda size: st.tuples(*(st.lists(logit, min_size=size, max_size=size) for _ in range(2)))
)


def distributions(drawn) -> tuple[torch.Tensor, torch.Tensor]:
    p, q = (torch.tensor([row], dtype=torch.float64).log_softmax(dim=-1) for row in drawn)
    return p, q


def test_by_hand():
    p, q = logs([0.5, 0.5]), logs([0.25, 0.75])
    assert reverse_kl(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert forward_kl(p, q).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    m = [0.375, 0.625]
    expected = 0.5 * naive_kl([0.5, 0.5], m) + 0.5 * naive_kl([0.25, 0.75], m)
    assert jsd(p, q, 0.5).item() == pytest.approx(expected)
    apart = jsd(logs([1.0, 0.0]), logs([0.0, 1.0]), 0.5)
    assert apart.item() == pytest.approx(LN2)  # disjoint: as far as it gets, and finite


@given(pairs, st.floats(0.01, 0.99))
def test_naive_sums(drawn, beta):
    p, q = distributions(drawn)
    a, b = p.exp()[0].tolist(), q.exp()[0].tolist()
    m = [(1 - beta) * x + beta * y for x, y in zip(a, b, strict=True)]
    assert kl(p, q).item() == pytest.approx(naive_kl(a, b), abs=1e-9)
    expected = (1 - beta) * naive_kl(a, m) + beta * naive_kl(b, m)
    assert jsd(p, q, beta).item() == pytest.approx(expected, abs=1e-9)


@given(pairs)
def test_properties(drawn):
    p, q = distributions(drawn)
    for distance in (reverse_kl, forward_kl, lambda a, b: jsd(a, b, 0.5)):
        assert distance(p, q).item() >= -1e-12
        assert distance(p, p).item() == pytest.approx(0.0, abs=1e-12)
    assert jsd(p, q, 0.5).item() == pytest.approx(jsd(q, p, 0.5).item(), abs=1e-12)
    assert jsd(p, q, 0.5).item() <= LN2 + 1e-12
    assert reverse_kl(p, q).item() == pytest.approx(forward_kl(q, p).item(), abs=1e-12)


@given(pairs, st.data())
def test_a_tail_bucket(drawn, data):
    """The k likeliest and a tail: at most the full distance, and equal to it with all tokens kept."""
    p, q = distributions(drawn)
    size = p.shape[1]
    k = data.draw(st.integers(1, size))
    top = p.topk(k, dim=-1).indices
    short, teacher = with_tail(p.gather(1, top)), with_tail(q.gather(1, top))
    assert short.shape == (1, k + 1)
    assert short.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    for distance in (reverse_kl, forward_kl, lambda a, b: jsd(a, b, 0.5)):
        full, kept = distance(p, q).item(), distance(short, teacher).item()
        assert kept <= full + 1e-5  # merging outcomes never separates distributions
        if k >= size - 1:
            assert kept == pytest.approx(full, abs=1e-4)


@settings(max_examples=30)
@given(pairs)
def test_gradients_against_finite_differences(drawn):
    """Into the student, through the softmax; none into the teacher."""
    student, teacher = (torch.tensor([row], dtype=torch.float64, requires_grad=True) for row in drawn)
    for distance in (reverse_kl, forward_kl, lambda a, b: jsd(a, b, 0.3)):

        def loss(logits, distance=distance):
            return distance(logits.log_softmax(-1), teacher.log_softmax(-1)).sum()

        (gradient,) = torch.autograd.grad(loss(student), student)
        for index in range(student.shape[1]):
            step = torch.zeros_like(student)
            step[0, index] = 1e-6
            slope = (loss(student + step) - loss(student - step)) / 2e-6
            assert gradient[0, index].item() == pytest.approx(slope.item(), abs=1e-6)
        assert torch.autograd.grad(loss(student), teacher, allow_unused=True) == (None,)


@settings(max_examples=30)
@given(pairs)
def test_the_sampled_form_has_the_gradient_of_the_reverse_kl_on_average(drawn):
    student, teacher = (torch.tensor([row], dtype=torch.float64, requires_grad=True) for row in drawn)
    p = student.log_softmax(-1)
    expected = torch.autograd.grad(reverse_kl(p, teacher.log_softmax(-1)).sum(), student, retain_graph=True)[
        0
    ]
    mean = (p.exp().detach() * sampled_reverse_kl(p, teacher.log_softmax(-1))).sum()
    assert torch.allclose(torch.autograd.grad(mean, student)[0], expected, atol=1e-9)


def test_a_frozen_teacher_pulls_the_student_to_it():
    """Descent raises the action the teacher prefers and lowers the other, whatever the distance."""
    teacher = logs([0.8, 0.2])
    for distance in (reverse_kl, forward_kl, lambda a, b: jsd(a, b, 0.5)):
        student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        before = student.softmax(-1).tolist()[0]
        distance(student.log_softmax(-1), teacher).sum().backward()
        after = (student - student.grad).softmax(-1).tolist()[0]
        assert after[0] > before[0] and after[1] < before[1]
