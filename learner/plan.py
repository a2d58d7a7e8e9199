"""The plan of an update: samples by loss, mini-batch, rank and micro-batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hindsight.configs.schema import Config
from hindsight.learner.batching import over_ranks, split
from hindsight.learner.losses import Objective, denominator
from hindsight.learner.samples import TrainingSample


@dataclass(frozen=True)
class UpdatePlan:
    """The work of one loss."""

    objective: Objective
    work: list[list[list[list[TrainingSample]]]]  # [rank][mini-batch][micro-batch][sample]
    scales: list[float]  # per mini-batch: the loss's weight over its denominator
    tokens: float  # tokens with a loss, or the sum of their weights in SFT
    denominator: float  # summed over mini-batches


def weigh(objective: Objective, config: Config) -> float:
    """Return the weight of a loss in the sum of losses."""
    weights = {"policy": config.loss.policy, "signal": config.signal.loss_weight}
    return weights.get(objective, 1.0)


def plan_updates(
    objective: Objective,
    samples: Sequence[TrainingSample],
    config: Config,
    weight: float,
    alone: bool = False,
) -> UpdatePlan:
    """Spread samples over mini-batches, ranks and micro-batches; every rank gets equally many micro-batches.

    Every loss has equally many mini-batches, so that each optimizer step sees all losses; with fewer samples,
    the last ones are empty.

    Args:
        alone: whether the model reads one row at a time.
    """
    learner = config.learner
    count = 1 if objective == "sft" else learner.mini_batches
    parts = split(samples, count)
    parts += [[] for _ in range(count - len(parts))]
    denominators = [_denominator(objective, part, config) for part in parts]
    places = [
        over_ranks([sample.ids for sample in part], 1 if alone else learner.micro_batch_tokens, learner.ranks)
        for part in parts
    ]
    work = [
        [
            [[part[i] for i in micro] for micro in place[rank]]
            for part, place in zip(parts, places, strict=True)
        ]
        for rank in range(learner.ranks)
    ]
    return UpdatePlan(
        objective=objective,
        work=work,
        scales=[weight / value if value else 0.0 for value in denominators],
        tokens=sum(_tokens(objective, part) for part in parts),
        denominator=sum(denominators),
    )


def _tokens(objective: Objective, samples: Sequence[TrainingSample]) -> float:
    if objective == "sft":
        return float(sum(np.sum(sample.column("advantages")) for sample in samples))
    return float(sum(len(sample.positions) for sample in samples))


def _denominator(objective: Objective, samples: Sequence[TrainingSample], config: Config) -> float:
    """The sum of a mini-batch's loss over all ranks is divided by this."""
    return denominator(samples, config.loss) if objective == "policy" else _tokens(objective, samples)
