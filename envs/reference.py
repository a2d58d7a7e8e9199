"""Run reference solutions in slots, to check that an environment works on this machine.

tasks ──► K seats of one shard, each: reference ─► reset ─► step … ─► success?
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvError, EnvFamily
from hindsight.envs.runtime.shard import Lease, Shard, SlotLimits
from hindsight.envs.tasks import TaskSpec


@dataclass
class ReferenceResults:
    """Results of the reference solutions of one environment."""

    tasks: int = 0
    unsolvable: int = 0  # tasks without a reference solution, which are only reset
    solved: int = 0
    reward: float = 0.0  # summed over tasks
    turns: int = 0
    seconds: float = 0.0  # wall time of resets and steps, all seats together
    problems: list[str] = field(default_factory=list)  # one line per task that was not solved


async def play_references(
    family: EnvFamily, env: Env, tasks: Sequence[TaskSpec], shown: Callable[[ReferenceResults], None]
) -> ReferenceResults:
    """Run the reference solution of every task, one per core at a time.

    Args:
        shown: called after every task.
    """
    seats = min(os.cpu_count() or 1, max(1, len(tasks)))
    shard = Shard(family, seats, SlotLimits.of(env), spares=0)
    played, queue = ReferenceResults(), list(reversed(list(enumerate(tasks))))

    async def seat(number: int) -> None:
        while queue:
            serial, task = queue.pop()
            await _play(shard, Lease(0, number, serial), task, played)
            shown(played)

    try:
        await asyncio.gather(*map(seat, range(seats)))
    finally:
        await shard.close()
    return played


async def _play(shard: Shard, lease: Lease, task: TaskSpec, played: ReferenceResults) -> None:
    played.tasks += 1
    try:
        actions = await shard.reference(lease, task)
        started = time.monotonic()
        await shard.reset(lease, task)
        if not actions:
            played.unsolvable += 1
            return
        for action in actions:
            result = await shard.step(lease, action)
            played.turns += 1
            if result.terminated or result.truncated:
                break
    except EnvError as error:
        played.problems.append(f"{task.id}: {error}")
        return
    played.seconds += time.monotonic() - started
    played.solved += result.success
    played.reward += result.reward
    if not result.success:
        played.problems.append(f"{task.id}: reward {result.reward:g} after {len(actions)} actions")
