"""What it costs to host an environment in a killable process, and in a process behind a shard actor.

    python -m benchmarks.isolation [--env toy] [--at-once 1,8,32] [--steps 40] [--rounds 5]

Every round plays the same actions in each way, one after another, so that a busy moment of the machine
hits all of them; the ratio is taken within a round. Actions are random ones of those that the environment
lists, or else its reference solutions. The first reset is not timed; later ones, of the same tasks, are.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import ray
import typer
from benchmarks.toy import ToyFamily
from rich.console import Console
from rich.table import Table

from hindsight.configs.paths import SOURCE, cache_root
from hindsight.configs.schema import Config, Env
from hindsight.envs.base import EnvFamily, Observation, StepResult, TextEnv
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.pool import PoolHandles, SlotPool, start_pool
from hindsight.envs.runtime.shard import SlotLimits
from hindsight.envs.runtime.slot import Forkserver, Slot
from hindsight.envs.tasks import TaskSpec

DEADLINE = 120.0  # seconds, for whatever is asked of a slot


Plan = Sequence[str]  # actions to take; empty: random ones
Plans = Sequence[Plan]


class Player(Protocol):
    async def reset(self, task: TaskSpec) -> Observation: ...

    async def step(self, action: str) -> StepResult: ...


class Direct:
    """The environment in this process."""

    def __init__(self, env: TextEnv) -> None:
        self._env = env

    async def reset(self, task: TaskSpec) -> Observation:
        return self._env.reset(task)

    async def step(self, action: str) -> StepResult:
        return self._env.step(action)


class Isolated:
    """The environment in a slot, without an actor between."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot

    async def reset(self, task: TaskSpec) -> Observation:
        return await self._slot.call("reset", task, deadline=DEADLINE)

    async def step(self, action: str) -> StepResult:
        return await self._slot.call("step", action, deadline=DEADLINE)


async def play(player: Player, observation: Observation, task: TaskSpec, plan: Plan, steps: int) -> None:
    """Take `steps` steps; an episode that ends, or whose plan does, begins again."""
    rng = random.Random(task.id)
    queue = deque(plan)
    for _ in range(steps):
        result = await player.step(queue.popleft() if plan else rng.choice(observation.actions))
        observation = result.observation
        if result.terminated or result.truncated or (plan and not queue):
            observation, queue = await player.reset(task), deque(plan)


async def measure(players: Sequence[Player], tasks: Sequence[TaskSpec], plans: Plans, steps: int) -> float:
    """Steps per second of all players together, each with its own task."""
    first = await asyncio.gather(*(player.reset(task) for player, task in zip(players, tasks, strict=True)))
    begin = time.perf_counter()
    await asyncio.gather(*map(play, players, first, tasks, plans, [steps] * len(players)))
    return steps * len(players) / (time.perf_counter() - begin)


@asynccontextmanager
async def every_way(family: EnvFamily, most: int, handles: PoolHandles) -> AsyncIterator[dict[str, Any]]:
    """Players of each way, one for each episode; in this process one instance plays one at a time."""
    server = Forkserver(family)
    direct = family.make()
    try:
        async with AsyncExitStack() as stack:
            slots = [await Slot.start(server, DEADLINE) for _ in range(most)]
            pool = SlotPool(handles.shards, most, SlotLimits.of(Env(slots=most)), patience=DEADLINE)
            leases = [await stack.enter_async_context(pool.lease()) for _ in range(most)]
            yield {"in process": [Direct(direct)], "slot": list(map(Isolated, slots)), "shard actor": leases}
    finally:
        direct.close()
        server.close()


def plans_of(family: EnvFamily, tasks: Sequence[TaskSpec]) -> list[Plan]:
    """What to play in each task: nothing in particular where the environment lists its actions."""
    instance = family.make()
    try:
        if instance.reset(tasks[0]).actions:
            return [()] * len(tasks)
        return [tuple(instance.reference(task) or ()) for task in tasks]
    finally:
        instance.close()


async def compare(
    family: EnvFamily, at_once: Sequence[int], steps: int, rounds: int, handles: PoolHandles
) -> Table:
    """One row per way and number of episodes at once: steps/s and share of the in-process speed."""
    drawn = family.manifest().train
    tasks = [drawn[index % len(drawn)] for index in range(max(at_once))]
    plans = plans_of(family, tasks)
    speeds: dict[tuple[str, int], list[float]] = {}
    async with every_way(family, max(at_once), handles) as ways:
        for repeat in range(rounds + 1):
            for way, players in ways.items():
                for count in (count for count in at_once if count <= len(players)):
                    speed = await measure(players[:count], tasks[:count], plans[:count], steps)
                    if repeat:  # the first round warms up
                        speeds.setdefault((way, count), []).append(speed)
    table = Table(
        title=f"{family.name}: {rounds} rounds of {steps} steps per episode, {os.cpu_count()} cores"
    )
    for column in ("way", "episodes at once", "steps/s [min, max]", "ratio [min, max]"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base = speeds["in process", 1]
    for (way, count), values in speeds.items():
        ratios = [value / direct for value, direct in zip(values, base, strict=True)]
        table.add_row(way, str(count), spread(values, ",.0f"), spread(ratios, ".3f"))
    return table


def spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


async def memory_and_replacement(family: EnvFamily, count: int) -> str:
    """What one more slot costs: memory of its own, before and in an episode, and seconds until it plays."""
    task = family.manifest().train[0]
    server = Forkserver(family)
    try:
        slots, seconds = [], []
        for _ in range(count + 1):
            begin = time.perf_counter()
            slots.append(await Slot.start(server, DEADLINE))
            seconds.append(time.perf_counter() - begin)
        resident, fresh = ([mebibytes(slot) for slot in slots] for mebibytes in (resident_mib, own_mib))
        for slot in slots:
            await slot.call("reset", task, deadline=DEADLINE)
        playing = list(map(own_mib, slots))
    finally:
        server.close()
    return (
        f"first slot (starts the server) {seconds[0]:.2f} s, a further one {spread(seconds[1:], '.3f')} s; "
        f"MiB resident {spread(resident, '.0f')}, of its own {spread(fresh, '.0f')}, "
        f"in an episode {spread(playing, '.0f')}"
    )


def resident_mib(slot: Slot) -> float:
    return slot.rss / 2**20


def own_mib(slot: Slot) -> float:
    return slot.private / 2**20


def main(env: str = "toy", at_once: str = "1,8,32", steps: int = 40, rounds: int = 5) -> None:
    """Print the comparison for the toy environment or one of the registry."""
    counts = [int(count) for count in at_once.split(",")]
    settings = Env(slots=max(counts), train_tasks=max(*counts, 6), eval_tasks=6, max_turns=200)
    if env != "toy":
        settings = replace(settings, name=env)
    family = ToyFamily(settings, cache_root()) if env == "toy" else make_family(settings)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join((SOURCE, str(Path(__file__).parents[1])))}},
    )
    console = Console()
    handles = start_pool(Config(env=settings), family)
    console.print(asyncio.run(compare(family, counts, steps, rounds, handles)))
    console.print(asyncio.run(memory_and_replacement(family, 8)))
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
