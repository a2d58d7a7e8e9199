"""Losses and gradients of samples, micro-batch after micro-batch, with fakes for the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import figure_fakes as fakes
import numpy as np
import torch

from hindsight.configs.schema import Config
from hindsight.learner import losses
from hindsight.learner.batching import Batch, collate
from hindsight.learner.distill import Likelihoods
from hindsight.learner.plan import plan_updates, weigh
from hindsight.learner.samples import TrainingSample
from hindsight.learner.signals import make_signal
from hindsight.rollout.types import Group

LossParts = tuple[Any, Any, dict[str, Any]]
NAMES = {"distil": "signal"}  # of a loss: in the recording -> today


@dataclass(frozen=True)
class Models:
    """What the fakes say of a micro-batch, all (P,) or (P, k); what has a gradient is a leaf."""

    now: torch.Tensor  # the student's log-probs, or the critic's values
    old: torch.Tensor
    entropy: torch.Tensor
    candidates: torch.Tensor  # the student's


def models(loss: str, samples: Sequence[TrainingSample], later: bool) -> Models:
    """Of one micro-batch. `later`: after the first of several optimizer steps."""
    now, old, entropy, candidates = [], [], [], []
    for one in samples:
        if loss == "value":
            old.append(one.values)
            now.append(fakes.critic_later(one.ids, one.positions, one.values) if later else one.values)
        else:
            now.append(fakes.student(one.ids, one.positions, one.rollout_logprobs))
            old.append(fakes.before(one.ids, one.positions, now[-1]) if later else now[-1])
        entropy.append(fakes.entropy(one.ids, one.positions))
        wanted = np.zeros((len(one.positions), 0), np.int32) if one.candidates is None else one.candidates
        candidates.append(fakes.score_candidates("student", one.ids, one.positions, wanted))
    made = [torch.from_numpy(np.concatenate(parts)) for parts in (now, old, entropy, candidates)]
    for leaf in (made[0], made[2], made[3]):
        leaf.requires_grad_(True)
    return Models(*made)


def policy_loss(config: Config, batch: Batch, held: Models, strength: float) -> LossParts:
    """The sum of the loss, sums of its statistics, and its parts of each token."""
    loss, signal = config.loss, make_signal(config.signal)
    weights = losses.token_weights(batch.rows, loss.aggregation)
    tokens = losses.Tokens(
        batch.advantages, held.old, batch.rollout, batch.lags, batch.teacher, batch.reference, weights
    )
    total, sums = losses.policy(held.now, held.entropy, tokens, loss, signal, strength)
    now = held.now.detach()
    gap = batch.teacher - now
    shaped = signal.shape(batch.advantages, gap, strength)
    value, stopped = losses.surrogate(now, held.old, shaped, loss)
    importance = losses.importance(held.old, batch.rollout, loss.tis_cap)
    parts = {
        "weight": torch.where(torch.isnan(gap), gap, signal.weights(batch.advantages, gap)[0]),
        "shaped": shaped,
        "importance": importance,
        "term": weights * importance * value,
        "clipped": stopped.int(),
    }
    if loss.kl > 0:
        parts["kl"] = losses.kl_divergence(now, batch.reference)
    return total, sums, parts


def distill_loss(config: Config, batch: Batch, held: Models, strength: float) -> LossParts:
    """As `policy_loss`; a token's term is the loss of that token alone."""
    signal = make_signal(config.signal)
    student = Likelihoods(held.now, held.candidates)
    teacher = Likelihoods(batch.teacher, batch.teacher_candidates)
    total, sums = losses.signal_loss(student, teacher, held.old, signal)
    importance = losses.importance(held.now.detach(), held.old, config.signal.tis_cap)
    term = signal.loss(student, teacher, held.old).detach()
    return total, sums, {"importance": importance, "term": term}


def value_loss(config: Config, batch: Batch, held: Models, strength: float) -> LossParts:
    """As `policy_loss`, of the critic."""
    total, sums = losses.value(held.now, batch.values, batch.returns, config.credit.value_clip)
    return total, sums, {}


LOSSES: dict[str, Callable[..., tuple[Any, Any, dict[str, Any]]]] = {
    "policy": policy_loss,
    "distil": distill_loss,
    "value": value_loss,
}


def learn(
    config: Config, name: str, samples: Sequence[TrainingSample], strength: float, later: bool, where: Any
) -> dict[str, Any]:
    """One loss over all samples and its gradients."""
    today = NAMES.get(name, name)
    plan = plan_updates(today, samples, config, weigh(today, config))
    total, sums, turns = 0.0, [], {}
    for micro in plan.work[0][0]:
        held, batch = models(name, micro, later), collate(micro)
        loss, own, parts = LOSSES[name](config, batch, held, strength)
        (loss * plan.scales[0]).backward()
        total += float(loss.detach())
        sums.append(own)
        leaves = {"d_now": held.now, "d_entropy": held.entropy, "d_candidates": held.candidates}
        parts |= {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None and leaf.numel()}
        by_turn(turns, micro, {key: tensor.numpy() for key, tensor in parts.items()}, where)
    report = losses.report(today, losses.merge(sums), plan.tokens, plan.denominator)
    return {
        "sum": total,
        "scale": plan.scales[0],
        "denominator": plan.denominator,
        "tokens": plan.tokens,
        "loss": total * plan.scales[0],
        "report": {
            key.replace("signal_", "distil_"): value for key, value in report.items() if "_lag_" not in key
        },
        "turns": turns,
    }


def by_turn(turns: Any, samples: Sequence[TrainingSample], arrays: Any, where: Any) -> None:
    """Write (P, …) arrays over the samples' tokens into `turns`: "group/trajectory/turn" -> name -> a list
    over the turn's tokens, null where the sample does not have the token."""
    done = 0
    for sample in samples:
        ordinal, trajectory, index, sequence = where[id(sample.ids)]
        for number, turn in enumerate(trajectory.turns):
            if turn.sequence != sequence:
                continue
            own = {int(p): done + i for i, p in enumerate(sample.positions) if turn.start <= p < turn.end}
            for name, values in arrays.items() if own else ():
                listed = [values[own[p]].tolist() if p in own else None for p in range(turn.start, turn.end)]
                turns.setdefault(f"{ordinal}/{index}/{number}", {})[name] = listed
        done += len(sample.positions)


def whose(groups: Sequence[Group]) -> dict[int, Any]:
    """By the identity of a sequence's ids, which samples share: whose it is."""
    return {
        id(sequence.ids): (group.ordinal, trajectory, index, number)
        for group in groups
        for index, trajectory in enumerate(group.trajectories)
        for number, sequence in enumerate(trajectory.sequences)
    }
