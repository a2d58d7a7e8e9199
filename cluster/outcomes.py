"""What papers print of an evaluation: figures of each task, their means, and intervals over tasks. Pure.

A play is one attempt at a task, in one or several trials. With n plays of a task, of which c succeed:

    avg@k    share of its first k plays that succeed          best@k   whether one of them does
    pass@k   1 − C(n−c, k) / C(n, k): one of k plays does     pass^k   C(c, k) / C(n, k): all of k plays do

pass@k and pass^k are unbiased: the means over every choice of k among the n plays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb, nan
from typing import Any

import numpy as np

RESAMPLES, SEED = 10_000, 0  # of the bootstrap
CHUNK = 1_000_000  # numbers that are drawn at once


@dataclass(frozen=True)
class Play:
    """The outcome of one attempt at a task."""

    success: bool
    score: float  # the environment's reward of the last trial
    turns: float  # of a trial, mean
    tokens: float = nan  # that were sampled; NaN: not known


Plays = Mapping[str, Sequence[Play]]  # by task
ByTask = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """The mean over tasks, with its 95 % interval."""

    mean: float
    low: float
    high: float


def pass_at(plays: int, successes: int, k: int) -> float:
    """Chance that at least one of k plays succeeds, k ≤ plays."""
    return 1.0 - comb(plays - successes, k) / comb(plays, k)


def pass_hat(plays: int, successes: int, k: int) -> float:
    """Chance that all of k plays succeed, k ≤ plays."""
    return comb(successes, k) / comb(plays, k)


def repeats(plays: Plays) -> int:
    """How often most tasks were played: at least half of them that often."""
    counts = sorted(len(own) for own in plays.values())
    return counts[(len(counts) - 1) // 2] if counts else 0


def by_task(plays: Plays) -> dict[str, ByTask]:
    """The figures of each task: figure -> task -> value.

    Those that need k plays leave out tasks that have fewer. k is 1, 2, 4, … up to `repeats`, if more than 1.
    """
    most = repeats(plays)
    found: dict[str, ByTask] = {
        "success": {task: _mean([play.success for play in own]) for task, own in plays.items()},
        "score": {task: _mean([play.score for play in own]) for task, own in plays.items()},
        "turns": {task: _mean([play.turns for play in own]) for task, own in plays.items()},
        "tokens_per_play": {task: _mean([play.tokens for play in own]) for task, own in plays.items()},
    }
    if most < 2:
        return found
    counts = {task: (len(own), sum(play.success for play in own)) for task, own in plays.items()}
    enough = [task for task in plays if counts[task][0] >= most]
    firsts = {task: [play.success for play in plays[task][:most]] for task in enough}
    found[f"avg_at_{most}"] = {task: _mean(own) for task, own in firsts.items()}
    found[f"best_at_{most}"] = {task: float(any(own)) for task, own in firsts.items()}
    for k in sorted({*(2**power for power in range(most.bit_length())), most}):
        able = [task for task in plays if counts[task][0] >= k]
        found[f"pass_at_{k}"] = {task: pass_at(*counts[task], k) for task in able}
        found[f"pass_hat_{k}"] = {task: pass_hat(*counts[task], k) for task in able}
    return found


def all_figures(plays: Plays) -> dict[str, Figure]:
    """Every figure that is known of all its tasks, with its interval."""
    return {
        name: figure
        for name, own in by_task(plays).items()
        if (figure := mean_with_interval(own)) is not None
    }


def paired(first: Plays, second: Plays) -> dict[str, Figure]:
    """How much higher each figure is in the second evaluation, over the tasks that both have."""
    ours, theirs = by_task(first), by_task(second)
    gains = {
        name: {task: theirs[name][task] - value for task, value in own.items() if task in theirs[name]}
        for name, own in ours.items()
        if name in theirs
    }
    return {name: figure for name, own in gains.items() if (figure := mean_with_interval(own)) is not None}


def mean_with_interval(values: ByTask) -> Figure | None:
    """The mean of a figure of each task, and its interval; None without a task, or if one is not known."""
    array = np.array(list(values.values()), np.float64)
    if not len(array) or np.isnan(array).any():
        return None
    return Figure(float(array.mean()), *bootstrap(array))


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of (n,) values, by resampling them; n > 0."""
    rng, count = np.random.default_rng(SEED), len(values)
    rows = max(1, CHUNK // count)
    sizes = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    means = [values[rng.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def plays_of(episodes: Sequence[Mapping[str, Any]]) -> dict[str, list[Play]]:
    """The plays in rows of trajectories/*.jsonl, by task. Trials of one play follow each other."""
    tried: dict[str, list[list[Mapping[str, Any]]]] = {}
    for row in episodes:
        own = tried.setdefault(row["task"], [])
        if row.get("trial", 1) == 1:
            own.append([])
        own[-1].append(row)
    return {task: [_play(trials) for trials in own] for task, own in tried.items()}


def _play(trials: Sequence[Mapping[str, Any]]) -> Play:
    success = any(row["success"] for row in trials)
    # Lessons between trials are sampled, too, and no row has them.
    tokens = nan if len(trials) > 1 else float(trials[0].get("tokens", nan))
    return Play(success, float(trials[-1]["reward"]), _mean([len(row["turns"]) for row in trials]), tokens)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
