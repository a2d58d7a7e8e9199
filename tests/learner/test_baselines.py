"""SDAR, Skill-SD, OPID, AgentOPSD and GRSD against slow versions of their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_toys import group, visits

from hindsight.cluster.report.record import PolicyLoss, loss_columns
from hindsight.configs.check import check_config
from hindsight.configs.load import load_config
from hindsight.learner.distill import Likelihoods
from hindsight.learner.losses import signal_loss
from hindsight.learner.samples import to_samples
from hindsight.learner.signals import make_signal

LOGPROBS = st.floats(-8.0, -0.01)
TRIPLES = st.lists(st.tuples(LOGPROBS, LOGPROBS, LOGPROBS), min_size=1, max_size=6)
METHODS = ("sdar", "skill_sd", "opid", "agentopsd", "grsd")


def signal_of(method):
    return make_signal(load_config(None, [f"method={method}"]).signal)


def gradient_of(method, triples):
    """The loss of a method's signal on some tokens, and its gradient by the student's log-probs."""
    student, teacher, old = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*triples, strict=True)
    )
    student.requires_grad_()
    none = torch.zeros(len(triples), 0)
    signal = signal_of(method)
    total, _ = signal_loss(Likelihoods(student, none), Likelihoods(teacher, none), old, signal)
    total.backward()
    return total.item(), student.grad.tolist()


@given(TRIPLES)
@settings(max_examples=30, deadline=None)
def test_sdar_raises_each_token_by_its_gate(triples):
    gates = [1 / (1 + math.exp(-5.0 * (teacher - student))) for student, teacher, _ in triples]
    value, gradient = gradient_of("sdar", triples)
    assert value == pytest.approx(
        sum(gate * (teacher - student) for gate, (student, teacher, _) in zip(gates, triples, strict=True)),
        abs=1e-9,
    )
    assert gradient == pytest.approx([-gate for gate in gates])


@given(TRIPLES)
@settings(max_examples=30, deadline=None)
def test_skill_sd_has_the_gradient_that_its_formula_says(triples):
    """ρ·(e^−ℓ − 1 + ℓ) with ℓ = log π − log π_T has the gradient ρ·ℓ·∇ log π."""
    value, gradient = gradient_of("skill_sd", triples)
    expected = 0.0
    for (student, teacher, old), slope in zip(triples, gradient, strict=True):
        apart, ratio = student - teacher, math.exp(student - old)
        expected += ratio * (math.exp(-apart) - 1 + apart)
        assert slope == pytest.approx(ratio * apart, rel=1e-6, abs=1e-9)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_their_losses_stay_finite_where_models_disagree_entirely():
    for method in ("sdar", "skill_sd"):
        value, gradient = gradient_of(method, [(-900.0, -0.1, -0.1), (-0.1, -900.0, -900.0)])
        assert math.isfinite(value) and np.isfinite(gradient).all()


def scored_group(outcomes, gaps, returns):
    """Trajectories of turns of two tokens.

    Args:
        gaps: for each trajectory and turn, Δ of its two tokens; None where the teacher did not score.
        returns: the advantage of each trajectory.
    """
    made = to_samples(
        group(*(visits(won, "abcdef"[: len(own)]) for won, own in zip(outcomes, gaps, strict=True)))
    )
    for sample, own, advantage in zip(made.samples, gaps, returns, strict=True):
        flat = np.array([np.nan if gap is None else gap for turn in own for gap in turn], np.float32)
        sample.advantages = np.full(len(flat), advantage, np.float32)
        sample.teacher_logprobs = sample.rollout_logprobs + flat
    return made


def slow_agentopsd(outcomes, gaps, returns, strength=0.5, bound=0.2):
    rate = min(max(sum(outcomes) / len(outcomes), 1e-4), 1 - 1e-4)
    found = []
    for own, advantage in zip(gaps, returns, strict=True):
        belief, total, changes = rate, 0.0, []
        for turn in own:
            total += sum(gap for gap in turn if gap is not None)
            now = 1 / (1 + math.exp(-(math.log(rate / (1 - rate)) + total)))
            now = min(max(now, 1e-6), 1 - 1e-6)
            changes.append(now - belief)
            belief = now
        scored = [any(gap is not None for gap in turn) for turn in own]
        known = [change for change, seen in zip(changes, scored, strict=True) if seen] or [0.0]
        mean = sum(known) / len(known)
        spread = math.sqrt(sum((change - mean) ** 2 for change in known) / len(known))
        for change, seen in zip(changes, scored, strict=True):
            z = (change - mean) / spread if spread > 1e-12 and seen else 0.0
            sign = (advantage > 0) - (advantage < 0)
            weight = min(max(1 + bound * sign * z, 1 - bound), 1 + bound)
            found += [advantage * ((1 - strength) + strength * weight)] * 2
    return found


def slow_grsd(outcomes, gaps, returns, strength=0.5, clip=0.2):
    def change(turn, advantage):
        scored = [gap for gap in turn if gap is not None]
        if not scored:
            return None
        sign = (advantage > 0) - (advantage < 0)
        return math.exp(min(max(sign * sum(scored) / len(scored), -20), 20)) - 1

    raw = [[change(turn, advantage) for turn in own] for own, advantage in zip(gaps, returns, strict=True)]
    known = [abs(one) for own in raw for one in own if one is not None]
    found = []
    for own, advantage in zip(raw, returns, strict=True):
        for one in own:
            factor = 1.0
            if one is not None and len(set(outcomes)) == 2:
                relative = one / (sum(known) / len(known) + 1e-6)
                factor = max(0.1, 1 + strength * min(max(relative, -clip), clip))
            found += [advantage * factor] * 2
    return found


GAPS = st.one_of(st.none(), st.integers(-3072, 3072).map(lambda n: n / 1024))  # which float32 holds
TURNS = st.lists(st.tuples(GAPS, GAPS), min_size=1, max_size=5)
GROUPS = st.lists(
    st.tuples(st.booleans(), TURNS, st.sampled_from([-1.5, -0.5, 0.0, 0.7, 2.0])), min_size=1, max_size=4
)


@given(GROUPS)
@settings(max_examples=60, deadline=None)
def test_opid_adds_the_gap_and_leaves_unscored_tokens_alone(members):
    outcomes, gaps, returns = map(list, zip(*members, strict=True))
    made = scored_group(outcomes, gaps, returns)
    signal_of("opid").shape_group(made, 0.001)
    shaped = np.concatenate([sample.as_shaped().advantages for sample in made.samples])
    apart = [gap for own in gaps for turn in own for gap in turn]
    kept = [advantage for own, advantage in zip(gaps, returns, strict=True) for turn in own for _ in turn]
    expected = [a + 0.001 * (gap or 0.0) for a, gap in zip(kept, apart, strict=True)]
    assert shaped == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("method", "slow"), [("agentopsd", slow_agentopsd), ("grsd", slow_grsd)])
@given(GROUPS)
@settings(max_examples=60, deadline=None)
def test_turn_weights_are_those_of_the_formula(method, slow, members):
    outcomes, gaps, returns = map(list, zip(*members, strict=True))
    made, signal = scored_group(outcomes, gaps, returns), signal_of(method)
    signal.shape_group(made, signal.strength(0))
    shaped = np.concatenate([sample.as_shaped().advantages for sample in made.samples])
    assert shaped == pytest.approx(slow(outcomes, gaps, returns), abs=2e-3)
    kept = np.concatenate([sample.advantages for sample in made.samples])
    assert (np.sign(shaped) == np.sign(kept)).all()


def test_a_turn_that_the_teacher_did_not_see_keeps_its_advantage_in_grsd():
    made = scored_group([True, False], [[(1.0, 1.0), (None, None)], [(0.5, 0.5)]], [1.0, -1.0])
    signal = signal_of("grsd")
    signal.shape_group(made, signal.strength(0))
    assert made.samples[0].shaped[2:].tolist() == [1.0, 1.0] and made.samples[0].shaped[0] != 1.0


def test_what_the_learner_gets_and_what_is_recorded_are_the_weighed_advantages():
    made = scored_group([True, False], [[(1.0, 1.0), (-1.0, -1.0)], [(0.5, 0.5)]], [1.0, -1.0])
    signal = signal_of("agentopsd")
    assert made.samples[0].as_shaped() is made.samples[0]
    signal.shape_group(made, signal.strength(0))
    columns = loss_columns(made.samples, PolicyLoss(made.samples, signal, signal.strength(0), "token-mean"))
    weighed = [sample.as_shaped().advantages / sample.advantages for sample in made.samples]
    assert columns["weight"] == pytest.approx(np.concatenate(weighed))
    assert columns["weight"][0] > 1 > columns["weight"][2]


@pytest.mark.parametrize("method", METHODS)
def test_each_can_be_run_with_the_context_of_serl(method):
    found = load_config(None, [f"method={method}", "feedback.sources=[immediate]"])
    assert found.needs_teacher and found.teacher.sync_every == 1
    assert [problem for problem in check_config(found) if problem.startswith(("feedback", "signal"))] == []


@pytest.mark.parametrize(("method", "name"), [("agentopsd", "belief"), ("opid", "shift")])
def test_what_needs_a_groups_advantages_and_a_critic_do_not_go_together(method, name):
    problems = check_config(
        load_config(None, [f"method={method}", "credit.advantage=gae", "feedback.sources=[immediate]"])
    )
    assert any(f"signal.name = {name}" in problem for problem in problems)
