"""Pairs of a better and a worse action in the same state. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hindsight.feedback.anchors import anchors
from hindsight.feedback.source import best, worst
from hindsight.rollout.types import Group, TurnAt

PAIRS = 2  # per task, at most: other tasks say more than other turns of the same one


@dataclass(frozen=True)
class Pair:
    """Two turns of a group: in the same state one took a better action, the other a worse one."""

    better: TurnAt
    worse: TurnAt

    @property
    def turns(self) -> tuple[TurnAt, TurnAt]:
        """Both, the better one first."""
        return self.better, self.worse


def recorded_pairs(group: Group, most: int = PAIRS) -> list[Pair]:
    """Pairs among the turns of a recorded group, at most `most`.

    At each anchor, the action whose trajectories succeeded most often, then with the highest mean reward, is
    better than the one for which both are lowest, unless they are equal. Anchors where the two differ most
    come first, then earlier ones. Malformed turns are left out.

    Raises:
        AnchorError: an observation has no `state_key`.
    """
    found: list[tuple[tuple[float, float], Pair]] = []
    for members in anchors(group):
        tries: dict[str, list[TurnAt]] = {}
        for at in members:
            turn = group.trajectories[at[0]].turns[at[1]]
            if turn.action is not None:
                tries.setdefault(" ".join(turn.action.split()), []).append(at)
        ranked = sorted(tries.values(), key=lambda own: _outcome(group, own))
        if not ranked:
            continue
        low, high = _outcome(group, ranked[0]), _outcome(group, ranked[-1])
        if high > low:
            apart = (high[0] - low[0], high[1] - low[1])
            found.append((apart, Pair(best(group, ranked[-1]), worst(group, ranked[0]))))
    found.sort(key=lambda one: one[0], reverse=True)  # stable, so earlier anchors stay first
    return [pair for _, pair in found[:most]]


def _outcome(group: Group, tries: Sequence[TurnAt]) -> tuple[float, float]:
    """Share of successes and mean reward of the trajectories that took an action."""
    played = [group.trajectories[index] for index, _ in tries]
    return sum(one.success for one in played) / len(played), sum(one.reward for one in played) / len(played)
