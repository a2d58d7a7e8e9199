"""From trajectories to what the critic is asked and taught, and from its values to advantages. Pure NumPy.

groups ──► value rows ──(critic: V)──► GAE ──► rows with values and returns, and advantages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hindsight.configs.schema import Credit
from hindsight.learner.gae import gae, token_rewards, turn_rewards
from hindsight.learner.rows import Row
from hindsight.rollout.types import Group, Trajectory

Place = tuple[int, int, int]  # (group ordinal, trajectory, sequence)
EPSILON = 1e-8  # beside a variance: where all advantages are the same, they become 0


@dataclass(frozen=True)
class Steps:
    """The n steps of a trajectory, in the order they were taken."""

    sequence: np.ndarray  # (n,) int32
    position: np.ndarray  # (n,) int32, of the step's first sampled token in that sequence

    def by_sequence(self) -> dict[int, np.ndarray]:
        """(n,) bool per sequence: which steps are in it."""
        return {int(number): self.sequence == number for number in np.unique(self.sequence)}


def steps_of(trajectory: Trajectory, credit: Credit) -> Steps:
    """By `credit.step`: every sampled token, or the first one of every turn."""
    ends = [turn.end if credit.step == "token" else turn.start + 1 for turn in trajectory.turns]
    spans = [np.arange(turn.start, end) for turn, end in zip(trajectory.turns, ends, strict=True)]
    owners = [np.full(len(span), turn.sequence) for turn, span in zip(trajectory.turns, spans, strict=True)]
    nothing = np.zeros(0)
    return Steps(*(np.concatenate([nothing, *parts]).astype(np.int32) for parts in (owners, spans)))


def value_rows(groups: Sequence[Group], credit: Credit) -> dict[Place, Row]:
    """A row per sequence that holds steps; its positions are theirs."""
    rows = {}
    for group in groups:
        for index, trajectory in enumerate(group.trajectories):
            steps = steps_of(trajectory, credit)
            for number, own in steps.by_sequence().items():
                positions = steps.position[own]
                unknown = np.full(len(positions), np.nan, dtype=np.float32)
                ids = trajectory.sequences[number].ids
                rows[group.ordinal, index, number] = Row(ids, positions, unknown, unknown, unknown)
    return rows


def estimate(
    groups: Sequence[Group], rows: Mapping[Place, Row], values: Sequence[np.ndarray], credit: Credit
) -> tuple[list[Row], dict[tuple[int, int], list[np.ndarray]]]:
    """What the critic's values make of the trajectories, by `learner.gae.gae`.

    Args:
        rows: `value_rows` of the same groups. values: (P,) V of each of them.

    Returns:
        The rows with values and returns; and `learner.rows.Advantages`, where each token of a turn has its
        step's, whitened over all tokens if `credit.whiten` says so.
    """
    held = dict(zip(rows, values, strict=True))
    taught: dict[Place, Row] = {}
    advantages: dict[tuple[int, int], list[np.ndarray]] = {}
    for group in groups:
        for index, trajectory in enumerate(group.trajectories):
            steps = steps_of(trajectory, credit)
            places = {(group.ordinal, index, number): own for number, own in steps.by_sequence().items()}
            v = np.zeros(len(steps.position))
            for place, own in places.items():
                v[own] = held[place]
            rewards = (token_rewards if credit.step == "token" else turn_rewards)(trajectory, credit)
            found, returns = gae(rewards, v, credit.gamma, credit.gae_lambda)
            for place, own in places.items():
                taught[place] = replace(rows[place], values=held[place], returns=returns[own])
            advantages[group.ordinal, index] = _by_turn(trajectory, found, credit)
    return list(taught.values()), whiten(advantages) if credit.whiten else advantages


def whiten(advantages: Mapping[tuple[int, int], list[np.ndarray]]) -> dict[tuple[int, int], list[np.ndarray]]:
    """(A − mean) / √(variance + 1e-8) with mean and variance over all sampled tokens of the batch."""
    tokens = np.concatenate([np.zeros(0), *(turn for turns in advantages.values() for turn in turns)])
    if not len(tokens):
        return dict(advantages)
    mean, scale = tokens.mean(), np.sqrt(tokens.var() + EPSILON)
    return {
        owner: [((turn - mean) / scale).astype(np.float32) for turn in turns]
        for owner, turns in advantages.items()
    }


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """How well the critic's values fit the returns; the share of their variance that they explain is NaN
    where all returns are the same."""
    values, returns = (
        np.concatenate([np.zeros(0), *(getattr(row, name) for row in rows)]) for name in ("values", "returns")
    )
    spread = returns.var()
    return {
        "value_mean": float(values.mean()),
        "return_mean": float(returns.mean()),
        "explained_variance": float(1.0 - (returns - values).var() / spread) if spread > 0 else float("nan"),
    }


def _by_turn(trajectory: Trajectory, found: np.ndarray, credit: Credit) -> list[np.ndarray]:
    """Of each turn, (n,) the advantages of its tokens. `found`: of each step."""
    lengths = [turn.end - turn.start for turn in trajectory.turns]
    tokens = found if credit.step == "token" else np.repeat(found, lengths)
    return np.split(tokens, np.cumsum(lengths)[:-1]) if lengths else []
