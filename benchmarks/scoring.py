"""What is gained where a trajectory is scored when it ends instead of when its group ends.

    python -m benchmarks.scoring [--replicas 6] [--ranks 6] [--draws 20]

Nothing runs: ends of trajectories are drawn, and replicas take them first come, first served. Rates and
tokens are those that `hindsight plan alfworld_7b_gpu --budget` assumes, trained synchronously. A group with
equal rewards teaches nothing by sibling advantages, so scoring by them has to wait until two rewards differ;
distillation scores everything.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from hindsight.cluster.rates import EPISODES, Gpu

GROUPS, SIZE = 16, 8
GPU, EPISODE, WINDOW = Gpu(), EPISODES["alfworld"], 2
PROMPT = EPISODE.first + WINDOW * EPISODE.observation  # tokens of a turn
RESPONSE = EPISODE.thought + EPISODE.action
SCORED = PROMPT + EPISODE.hint + RESPONSE  # tokens of a turn that a teacher reads
UPDATE = 8 / 6  # activations are computed twice
NOISE = 0.3  # standard deviation of the log of a turn's time


@dataclass(frozen=True)
class Ended:
    """A trajectory."""

    at: float  # seconds after the step's begin
    turns: int
    success: bool


@dataclass(frozen=True)
class Game:
    """How episodes of an environment end."""

    name: str
    turns: tuple[int, int]  # of a success
    failed: tuple[int, int]  # of a failure


GAMES = (
    Game("failures end at the limit of 50 turns", (6, 35), (50, 50)),
    Game("failures end by themselves", (3, 15), (3, 15)),
)


def rollouts(game: Game, success: float, seed: int) -> list[list[Ended]]:
    """Groups whose tasks differ in difficulty, each sorted by when its trajectories end."""
    draw = np.random.default_rng(seed)
    seconds = PROMPT / GPU.prefill + RESPONSE * GPU.token + EPISODE.step

    def play(chance: float) -> Ended:
        won = bool(draw.random() < chance)
        low, high = game.turns if won else game.failed
        turns = int(draw.integers(low, high + 1))
        return Ended(float(draw.lognormal(np.log(seconds), NOISE, turns).sum()), turns, won)

    chances = draw.beta(2 * success, 2 * (1 - success), GROUPS)
    return [sorted((play(chance) for _ in range(SIZE)), key=lambda one: one.at) for chance in chances]


def work(groups: Sequence[Sequence[Ended]], distills: bool, early: bool) -> Iterator[tuple[float, int]]:
    """When each trajectory can be scored, and its turns."""
    for group in groups:
        differ = [one.at for one in group if one.success != group[0].success]
        if not (differ or distills):
            continue
        known = 0.0 if distills else differ[0]
        yield from ((max(one.at, known) if early else group[-1].at, one.turns) for one in group)


def after(jobs: Sequence[tuple[float, int]], replicas: int, ended: float) -> tuple[float, float]:
    """Seconds of scoring after the last rollout, and the share of the scoring that was done before."""
    free, last, hidden, total = [0.0] * replicas, ended, 0.0, 0.0
    for at, turns in sorted(jobs):
        start, seconds = max(heapq.heappop(free), at), turns * SCORED / GPU.score
        heapq.heappush(free, start + seconds)
        last, total = max(last, start + seconds), total + seconds
        hidden += max(0.0, min(start + seconds, ended) - start)
    return last - ended, hidden / total if total else 0.0


def main(
    replicas: Annotated[int, typer.Option(help="teachers")] = 6,
    ranks: Annotated[int, typer.Option(help="ranks of the learner")] = 6,
    draws: Annotated[int, typer.Option(help="steps that are averaged")] = 20,
) -> None:
    """Print seconds of scoring that rollouts do not hide."""
    table = Table(title=f"{GROUPS} × {SIZE} trajectories, {replicas} teachers: a model, not a measurement")
    for name in ("episodes", "success", "scored", "scoring", "left if by group", "by trajectory", "of step"):
        table.add_column(name)
    for name in ("hidden if by group", "hidden by trajectory"):
        table.add_column(name)
    for game in GAMES:
        for success in (0.2, 0.5, 0.8):
            for distills in (False, True):
                figures = []
                for seed in range(draws):
                    groups = rollouts(game, success, seed)
                    ended = max(group[-1].at for group in groups)
                    whole, each = (list(work(groups, distills, early)) for early in (False, True))
                    turns = sum(own for _, own in whole)
                    done = [after(jobs, replicas, ended) for jobs in (whole, each)]
                    left, hidden = zip(*done, strict=True)
                    step = ended + left[0] + UPDATE * turns * (PROMPT + RESPONSE) / ranks / GPU.learn
                    share = (left[0] - left[1]) / step
                    figures.append((turns * SCORED / GPU.score / replicas, *left, share, *hidden))
                busy, by_group, by_trajectory, gained, *shares = np.mean(figures, axis=0)
                scored = "everything" if distills else "unequal groups"
                seconds = (f"{one:.0f} s" for one in (busy, by_group, by_trajectory))
                hid = (f"{one:.0%}" for one in shares)
                table.add_row(game.name, f"{success:.0%}", scored, *seconds, f"{gained:.1%}", *hid)
    Console(width=180).print(table)


if __name__ == "__main__":
    typer.run(main)
