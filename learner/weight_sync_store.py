"""Weights over shared memory, and to other machines over Ray's object store (`object_store`).

Rank 0 writes its weights once into a segment, which engines, teacher and reference policy on its machine map.
An engine on another machine copies them from the object store into a segment of its own for vLLM's processes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from hindsight.envs.runtime.remote import ActorUnavailable, back, call
from hindsight.learner.group import DEADLINE, LearnerGroup
from hindsight.learner.weight_sync import Canary, SyncReport, verify
from hindsight.rollout.segment import SegmentUnreachable
from hindsight.rollout.types import EngineLost
from hindsight.rollout.weights import WeightSet

logger = logging.getLogger(__name__)


class ObjectStore:
    """See `weight_sync.Transport`. It also serves adapters, which vLLM loads from files."""

    def __init__(
        self,
        learner: LearnerGroup,
        start_timeout: float,
        copied: Callable[[], bool] = lambda: False,
        kept: Callable[[], Collection[int]] = lambda: (),
        turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            start_timeout: seconds in which an engine whose process is replaced meanwhile must be back.
            copied: whether somebody may need the copy in the object store.
            kept: versions that others still read from shared memory.
            turn: holds the engines' turn on their GPUs (`cluster.turns`).
        """
        self.learner, self.start_timeout, self.turn = learner, start_timeout, turn
        self.copied, self.kept = copied, kept
        self.unreachable = False  # whether shared memory has failed on this machine

    async def send(
        self, version: int, engines: Sequence[Any], canary: Canary
    ) -> tuple[SyncReport, WeightSet]:
        """See `weight_sync.Transport.send`; an engine that is replaced meanwhile gets the weights again."""
        while True:
            weights = await self.export(version)
            async with self.turn():
                try:
                    timeout = self.learner.config.learner.timeout
                    return await sync_weights(engines, weights, canary, timeout, self.start_timeout), weights
                except SegmentUnreachable as error:
                    if weights.data is not None:
                        raise
                    logger.warning("weights go through the object store from now on: %s", error)
                    self.unreachable = True

    async def export(self, version: int) -> WeightSet:
        """The learner's weights, for all who can read them."""
        return await self.learner.export(version, self.kept(), self.unreachable or self.copied())


async def sync_weights(
    engines: Sequence[Any], weights: WeightSet, canary: Canary, timeout: float, start_timeout: float
) -> SyncReport:
    """Load `weights` into all engines at once and verify each one.

    Args:
        timeout: seconds for each call of an engine.
        start_timeout: seconds in which an engine whose process is replaced meanwhile must be back.

    Raises:
        RemoteError: an engine is lost for good or missed a deadline.
        EngineError: an engine failed to load.
        SegmentUnreachable: an engine cannot read the weights.
        WeightSyncError: an engine holds other weights, or computes with others.
    """
    started = time.monotonic()

    async def install(index: int, engine: Any) -> float:
        while True:
            try:
                what = f"loading weights {weights.version} on engine {index}"
                await call(engine, "load_weights", weights, timeout=timeout, setting=DEADLINE, what=what)
                return await verify(index, engine, weights.version, weights.checksum, canary, timeout)
            except (ActorUnavailable, EngineLost):
                await back(engine, timeout=start_timeout)

    gaps = await asyncio.gather(*(install(*one) for one in enumerate(engines)))
    return SyncReport(time.monotonic() - started, max(gaps, default=0.0), weights.checksum)
