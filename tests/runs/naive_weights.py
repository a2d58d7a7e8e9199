"""What this year's signals make of recorded turns, in plain Python and one token at a time."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from hindsight.configs.schema import Config
from hindsight.rollout.types import Group

Gaps = list[list[list[float]]]  # by trajectory, turn and scored token
Turns = list[list[float]]  # by trajectory and turn


def naive_advantages(group: Group, config: Config) -> Turns:
    """GRPO's, over the turns of the group."""
    penalty = config.credit.malformed_penalty
    returns = [
        [config.credit.success_reward * own.success - penalty * (not turn.valid) for turn in own.turns]
        for own in group.trajectories
    ]
    flat = [one for own in returns for one in own]
    mean, deviation = statistics.fmean(flat), statistics.stdev(flat)
    return [[(one - mean) / (deviation + 1e-6) for one in own] for own in returns]


def gaps_of(turn: dict[str, Any]) -> list[float]:
    """Δ of the scored tokens of a recorded turn."""
    pairs = zip(turn["teacher_logprob"], turn["rollout_logprob"], strict=True)
    return [teacher - rollout for teacher, rollout in pairs if teacher is not None]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def naive_grsd(group: Group, advantages: Turns, gaps: Gaps) -> Gaps:
    if len({own.success for own in group.trajectories}) < 2:
        return [[[1.0] * len(turn) for turn in own] for own in gaps]
    changes: dict[tuple[int, int], float] = {}
    for e, own in enumerate(gaps):
        for n, turn in enumerate(own):
            if turn:
                changes[e, n] = math.exp(sign(advantages[e][n]) * statistics.fmean(turn)) - 1
    mean = statistics.fmean(map(abs, changes.values())) + 1e-6
    relative = {turn: min(0.2, max(-0.2, change / mean)) for turn, change in changes.items()}
    return [
        [[1 + 0.5 * relative[e, n]] * len(turn) if turn else [] for n, turn in enumerate(own)]
        for e, own in enumerate(gaps)
    ]


def naive_agentopsd(group: Group, advantages: Turns, gaps: Gaps) -> Gaps:
    rate = sum(own.success for own in group.trajectories) / len(group.trajectories)
    start, found = min(1 - 1e-4, max(1e-4, rate)), []
    for signs, own in zip(advantages, gaps, strict=True):
        sums = itertools.accumulate(sum(turn) for turn in own)
        beliefs = [start, *(1 / (1 + (1 - start) / start * math.exp(-one)) for one in sums)]
        changes = [after - before for before, after in itertools.pairwise(beliefs)]
        scored = [change for change, turn in zip(changes, own, strict=True) if turn]
        spread = statistics.pstdev(scored) if scored else 0.0
        weights = []
        for advantage, change, turn in zip(signs, changes, own, strict=True):
            score = (change - statistics.fmean(scored)) / spread if spread and turn else 0.0
            weights.append([0.5 + 0.5 * min(1.2, max(0.8, 1 + 0.2 * sign(advantage) * score))] * len(turn))
        found.append(weights)
    return found


def naive_opid(group: Group, advantages: Turns, gaps: Gaps) -> Gaps:  # with λ = 1
    return [
        [[1 + gap / (advantages[e][n] or math.nan) for gap in turn] for n, turn in enumerate(own)]
        for e, own in enumerate(gaps)
    ]


NAIVE = {"grsd": naive_grsd, "agentopsd": naive_agentopsd, "opid": naive_opid}
