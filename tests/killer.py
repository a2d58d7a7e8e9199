"""Ends processes of a run that is going on, with SIGKILL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import psutil

from hindsight.cluster.run import Run

ROLES: dict[str, Callable[[Run], Any]] = {
    "engine": lambda run: run.actors.engines[0],
    "worker": lambda run: run.actors.worker,
    "shard": lambda run: run.actors.environments.shards[0],
    "teacher": lambda run: run.actors.teacher and run.actors.teacher.replicas[0],
    "learner": lambda run: run.actors.learner and run.actors.learner.ranks[0],
}


async def kill(run: Run, role: str) -> None:
    """Kill the process of a role; "core" is the one below an engine that computes."""
    actor = ROLES["engine" if role == "core" else role](run)
    victim = psutil.Process(await actor.__ray_call__.remote(lambda _: os.getpid()))
    if role == "core":
        [victim] = [child for child in victim.children(recursive=True) if "EngineCore" in child.name()]
    victim.kill()


async def kill_at(run: Run, plan: dict[str, tuple[int, str]]) -> None:
    """Kill each role once, after so many finished steps and as soon as the driver does that.

    Args:
        plan: by role: finished steps, and the beginning of what the watchdog was told last.
    """

    async def wait_and_kill(role: str, step: int, doing: str) -> None:
        while run.state.step < step or not run.watchdog.doing.startswith(doing):
            await asyncio.sleep(0.02)
        await kill(run, role)

    await asyncio.gather(*(wait_and_kill(role, *when) for role, when in plan.items()))
