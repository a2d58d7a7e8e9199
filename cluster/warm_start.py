"""The warm start: imitation of demonstrations that an agent could have found, through the same learner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from cluster.start import Actors
from cluster.watch import within
from configs.schema import Config
from envs.base import Demonstration
from envs.tasks import TaskSpec
from learner.demos import demonstration_rows
from learner.rows import Row
from rollout.render import Renderer

Report = Callable[[int, int, dict[str, float]], None]
Now = Callable[[str, int, int], None]


def linear(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then linear decay towards zero over the rest."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


async def collect(config: Config, actors: Actors, tasks: Sequence[TaskSpec], now: Now) -> list[Demonstration]:
    """`warm_start.demos` demonstrations on training tasks; only successful ones are kept."""
    settings, done = config.warm_start, 0

    async def play(index: int) -> Demonstration:
        nonlocal done
        worker = actors.workers[index % len(actors.workers)]
        call = worker.demonstrate.remote(tasks[index % len(tasks)], config.seed + index, settings.noise)
        demonstration = await within(config.cluster.stall_timeout * 4, f"demonstration {index}", call)
        done += 1
        now("collecting demonstrations", done, settings.demos)
        return demonstration

    played = await asyncio.gather(*(play(index) for index in range(settings.demos)))
    return [demonstration for demonstration in played if demonstration.success]


def batches(rows: Sequence[Row], size: int, epochs: int, seed: int) -> list[list[Row]]:
    """Shuffled batches of whole rows over all epochs; no row is repeated within an epoch or left out."""
    rng = np.random.default_rng([seed, 17])
    plan: list[list[Row]] = []
    for _ in range(epochs):
        order = rng.permutation(len(rows))
        plan += [[rows[i] for i in order[start : start + size]] for start in range(0, len(rows), size)]
    return plan


async def imitate(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    tasks: Sequence[TaskSpec],
    now: Now,
    report: Report,
) -> int:
    """Run the warm start; returns the number of demonstrations used."""
    assert actors.learner is not None
    settings = config.warm_start
    demonstrations = await collect(config, actors, tasks, now)
    rows = [
        row
        for index, demonstration in enumerate(demonstrations)
        for row in demonstration_rows(
            demonstration, renderer, settings.hints, config.seed + index, settings.observations
        )
    ]
    plan = batches(rows, settings.batch_rows, settings.epochs, config.seed)
    for step, batch in enumerate(plan):
        lr = linear(step, len(plan), settings.lr, warmup=max(1, len(plan) // 20))
        stats = await actors.learner.update({"imitation": batch}, strength=0.0, lr=lr)
        report(step + 1, len(plan), stats)
    # Imitation's first gradients are some ten times reinforcement's: Adam would remember them for a thousand
    # steps and hold back each by as much.
    await actors.learner.reset_optimizer()
    return len(demonstrations)
