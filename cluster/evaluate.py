"""Evaluation on the fixed panel: success with its 95 % interval."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from cluster.start import Actors
from cluster.watch import within
from configs.schema import Config
from envs.tasks import TaskSpec
from rollout.types import Failure, Group

EVAL_SEED = 1_000_003  # apart from training seeds, the same for every evaluation


@dataclass(frozen=True)
class Evaluation:
    """Success over a panel. `low` and `high` bound its 95 % Wilson interval."""

    stage: str
    step: int
    episodes: int
    success: float
    low: float
    high: float
    turns: float
    seconds: float

    def metrics(self) -> dict[str, float]:
        """The figures as a metrics row."""
        return {
            f"eval/{name}": float(value)
            for name, value in asdict(self).items()
            if name not in ("stage", "step")
        }


def wilson(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate; (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    rate, spread = successes / episodes, z * z / episodes
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes))
    return max(0.0, centre - half), min(1.0, centre + half)


def panel(tasks: tuple[TaskSpec, ...], episodes: int) -> list[tuple[int, TaskSpec]]:
    """The numbered episodes of an evaluation; tasks repeat when the panel is shorter."""
    return [(index, tasks[index % len(tasks)]) for index in range(episodes)]


async def evaluate(
    config: Config,
    actors: Actors,
    episodes: list[tuple[int, TaskSpec]],
    stage: str,
    step: int,
    played: Callable[[int], None],
) -> tuple[Evaluation, list[Group], list[Failure]]:
    """Play the episodes once with the engines' weights, calling `played` with their number after each.

    Episodes that infrastructure broke are left out of the rate.
    """
    clock = asyncio.get_running_loop().time
    started, done = clock(), 0

    async def play(index: int, task: TaskSpec) -> Group:
        nonlocal done
        worker = actors.workers[index % len(actors.workers)]
        rollout = worker.rollout.remote(index, task, 1, config.rollout.eval_temperature, EVAL_SEED)
        group = await within(config.cluster.stall_timeout * 4, f"evaluation episode {index}", rollout)
        done += 1
        played(done)
        return group

    groups = await asyncio.gather(*(play(*episode) for episode in episodes))
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    successes = sum(trajectory.success for trajectory in trajectories)
    low, high = wilson(successes, len(trajectories))
    result = Evaluation(
        stage=stage,
        step=step,
        episodes=len(trajectories),
        success=successes / max(1, len(trajectories)),
        low=low,
        high=high,
        turns=sum(len(t.turns) for t in trajectories) / max(1, len(trajectories)),
        seconds=clock() - started,
    )
    return result, list(groups), [failure for group in groups for failure in group.failures]
