"""Writes checkpoints: while training continues if memory has room for a copy, else while it waits."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray

from hindsight.cluster.failures import RunError
from hindsight.cluster.folder import checkpoints
from hindsight.cluster.machines import living_nodes
from hindsight.cluster.report.timeline import Timeline
from hindsight.cluster.start import Actors
from hindsight.cluster.view import View
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import call
from hindsight.learner.checkpoint import (
    CheckpointError,
    drafting,
    expected_bytes,
    publish,
    require_room,
    write_state,
)
from hindsight.learner.staging import StagingFolder, choose, free_memory


class Saver:
    """Writes one checkpoint at a time."""

    def __init__(
        self, config: Config, actors: Actors, timeline: Timeline, view: View, watchdog: Watchdog
    ) -> None:
        self.config, self.actors, self.timeline = config, actors, timeline
        self.view, self.watchdog = view, watchdog
        self.root = checkpoints(config)
        self.publishing: asyncio.Task[None] | None = None  # makes what was written the latest checkpoint
        self.beside: bool | None = None  # how the last one was written (`learner.staging`)

    async def write(self, step: int, state: Mapping[str, Any], beside: bool = True) -> None:
        """Write a checkpoint: learner, critic, teacher, driver state, and a model for other tools.

        Args:
            beside: return once a copy is in memory, if it fits; `settle` waits for the rest.

        Raises:
            CheckpointError: it, or the one before, cannot be written.
        """
        await self.settle()
        size = self.actors.checkpoint_bytes
        stage = await self._stage(expected_bytes(self.root, size)) if beside else None
        elsewhere = stage.folder if stage else None
        copying = self.timeline.span(step, "checkpoint", "copy") if stage else nullcontext()
        try:
            with self.watchdog.waiting(self.config.learner.timeout), copying:
                async with drafting(self.root, step, size, elsewhere) as folder:
                    await self._write(folder, state)
        except BaseException:
            if stage:
                await asyncio.to_thread(stage.remove)
            raise
        self.publishing = asyncio.create_task(self._publish(folder, step, stage))
        if stage is None:
            await self.settle()

    async def settle(self) -> None:
        """Wait until the checkpoint that is being written, if any, is the latest.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self.publishing is not None:
            with self.watchdog.waiting(self.config.learner.timeout):
                await asyncio.wait({self.publishing})  # it continues if this is canceled
            ended, self.publishing = self.publishing, None
            ended.result()

    async def check(self) -> None:
        """Raise CheckpointError if the last checkpoint could not be written; do not wait for it."""
        if self.publishing is not None and self.publishing.done():
            await self.settle()

    async def end(self, _: object, error: BaseException | None, *__: object) -> None:
        """Wait for the checkpoint in flight, unless a signal is ending the run.

        If the run already failed, a checkpoint error is only logged, so that it does not hide the first
        error.
        """
        if isinstance(error, asyncio.CancelledError) and self.publishing is not None:
            self.publishing.cancel()
            return
        try:
            await self.settle()
        except CheckpointError as failed:
            if error is None:
                raise
            self.view.say(str(failed))

    async def _stage(self, size: int) -> StagingFolder | None:
        """A folder in memory for a checkpoint of `size` bytes; None: training waits for the disk."""
        way = choose(size, len(living_nodes()), *free_memory())
        if way.beside != self.beside:
            self.beside = way.beside
            self.view.say(str(way))
        return await asyncio.to_thread(StagingFolder) if way.beside else None

    async def _write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write all of a checkpoint's files."""
        learner, critic = self.actors.learner, self.actors.critic
        assert learner is not None
        await learner.save(folder)
        if critic is not None:
            await critic.save(folder)
        await learner.save_model(folder / "model")
        for name, scorer in self.actors.scorers().items():
            await scorer.save(folder / f"{name}.safetensors")
        write_state(folder, state)

    async def _publish(self, folder: Path, step: int, stage: StagingFolder | None) -> None:
        """Make what was written the latest checkpoint."""
        try:
            with self.timeline.span(step, "checkpoint", "save"):
                await publish(folder, self.root, step, self.config.checkpoint.keep)
        finally:
            if stage:  # shielded: if the run ends meanwhile, this is canceled twice
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, stage.remove))


async def require_storage(config: Config, actors: Actors) -> None:
    """Check, before hours are spent, that every actor can write its part of a checkpoint, and that it fits.

    Raises:
        RunError: an actor's node does not share the run's folder.
        CheckpointError: there is too little room.
    """
    folder = checkpoints(config)
    folder.mkdir(exist_ok=True)
    require_room(folder, actors.checkpoint_bytes)
    marker = folder / f".seen-{uuid.uuid4().hex}"  # a name that no file system has in a cache
    marker.touch()
    try:
        blind = await blind_writers(actors, marker, config.cluster.start_timeout)
    finally:
        marker.unlink()
    if blind:
        raise RunError(
            f"out = {config.out!r} is on this node alone: {', '.join(blind)} cannot see it, and what they "
            "write of each checkpoint would be lost. Set `out` to a folder that all nodes share"
        )


async def blind_writers(actors: Actors, path: Path, timeout: float) -> list[str]:
    """The actors who write checkpoints and whose node has no such file, as "learner on 10.0.0.2"."""
    groups = {role: pool.replicas for role, pool in actors.scorers().items()}
    groups |= {role: ranks.ranks for role, ranks in actors.trained().items()}
    writers = [(role, one) for role, own in groups.items() for one in own]
    limit: dict[str, Any] = {"timeout": timeout, "setting": "cluster.start_timeout"}
    answers = await asyncio.gather(
        *(
            call(one, "__ray_call__", sees, str(path), what=f"asking the {role} for {path}", **limit)
            for role, one in writers
        )
    )
    pairs = zip(writers, answers, strict=True)
    return sorted({f"{role} on {address}" for (role, _), (address, there) in pairs if not there})


def sees(_: Any, path: str) -> tuple[str, bool]:
    """In an actor: its node's address, and whether the file is there."""
    return ray.util.get_node_ip_address(), os.path.exists(path)
