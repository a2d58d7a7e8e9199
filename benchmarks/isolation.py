"""What it costs to host an environment in a killable process, and in a process behind a shard actor.

    python -m benchmarks.isolation [--env toy] [--episodes 8] [--steps 40] [--rounds 5]

Every round plays the same random actions in each way, one after another, so that a busy moment of the machine
hits all of them; the ratio is taken within a round. Resets are not timed.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import ray
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.toy import ToyFamily
from configs.schema import Config, Env
from envs.base import EnvFamily, Observation, StepResult, TextEnv
from envs.pool import PoolHandles, lease_slot, start_pool
from envs.process import Forkserver, Slot
from envs.registry import make_family
from envs.tasks import TaskSpec

DEADLINE = 120.0  # seconds, for whatever is asked of a slot


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


async def play(player: Player, observation: Observation, task: TaskSpec, steps: int) -> None:
    """Random admissible actions, the same for the same task; an episode that ends begins again."""
    rng = random.Random(task.id)
    for _ in range(steps):
        result = await player.step(rng.choice(observation.actions))
        observation = result.observation
        if result.terminated or result.truncated:
            observation = await player.reset(task)


async def measure(players: Sequence[Player], tasks: Sequence[TaskSpec], steps: int) -> float:
    """Steps per second of all players together, each with its own task."""
    first = await asyncio.gather(*(player.reset(task) for player, task in zip(players, tasks, strict=True)))
    begin = time.perf_counter()
    await asyncio.gather(*map(play, players, first, tasks, [steps] * len(players)))
    return steps * len(players) / (time.perf_counter() - begin)


@asynccontextmanager
async def every_way(family: EnvFamily, episodes: int, handles: PoolHandles) -> AsyncIterator[dict[str, Any]]:
    """Players of each way, one for each episode; in this process one instance plays one at a time."""
    server = Forkserver(family)
    direct = family.make()
    try:
        async with AsyncExitStack() as stack:
            slots = [await Slot.start(server, DEADLINE) for _ in range(episodes)]
            leases = [await stack.enter_async_context(lease_slot(handles.pool)) for _ in range(episodes)]
            yield {"in process": [Direct(direct)], "slot": list(map(Isolated, slots)), "shard actor": leases}
    finally:
        direct.close()
        server.close()


async def compare(family: EnvFamily, episodes: int, steps: int, rounds: int, handles: PoolHandles) -> Table:
    """One row per way and number of episodes at once: steps/s and share of the in-process speed."""
    tasks = family.manifest().train[:episodes]
    speeds: dict[tuple[str, int], list[float]] = {}
    async with every_way(family, episodes, handles) as ways:
        for repeat in range(rounds + 1):
            for way, players in ways.items():
                for count in sorted({1, len(players)}):
                    speed = await measure(players[:count], tasks[:count], steps)
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


async def memory_and_replacement(family: EnvFamily, episodes: int) -> str:
    """What one more slot costs: resident and private memory, and the seconds until it can play."""
    server = Forkserver(family)
    try:
        slots, seconds = [], []
        for _ in range(episodes + 1):
            begin = time.perf_counter()
            slots.append(await Slot.start(server, DEADLINE))
            seconds.append(time.perf_counter() - begin)
        private = [private_bytes(slot.pid) / 2**20 for slot in slots]
        resident = [slot.rss / 2**20 for slot in slots]
    finally:
        server.close()
    return (
        f"first slot (starts the server) {seconds[0]:.2f} s, a further one {spread(seconds[1:], '.3f')} s; "
        f"MiB before its first episode: resident {spread(resident, '.0f')}, private {spread(private, '.0f')}"
    )


def private_bytes(pid: int) -> int:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def main(env: str = "toy", episodes: int = 8, steps: int = 40, rounds: int = 5) -> None:
    """Print the comparison for the toy environment or one of the registry."""
    settings = Env(slots=episodes, train_tasks=max(episodes, 6), eval_tasks=6)
    if env != "toy":
        settings = replace(settings, name=env)
    family = ToyFamily() if env == "toy" else make_family(settings)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}},
    )
    console = Console()
    handles = start_pool(Config(env=settings), family)
    console.print(asyncio.run(compare(family, episodes, steps, rounds, handles)))
    console.print(asyncio.run(memory_and_replacement(family, episodes)))
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
