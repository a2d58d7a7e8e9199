"""Weights from the learner's GPUs to the engines' GPUs by NCCL (`weight_sync.transport=nccl`).

Not yet run on a GPU. One broadcast serves all engines: the learner's rank 0 is NCCL rank 0 and sends. The
other learner ranks are not in that group but gather with rank 0, since under ZeRO-3 a parameter is whole only
where all take part.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hindsight.learner.group import LearnerGroup, answers
from hindsight.learner.weight_sync import Canary, SyncReport, verify_all


class Nccl:
    """See `weight_sync.Transport`."""

    def __init__(self, learner: LearnerGroup) -> None:
        self.learner = learner
        self.members: list[Any] = []  # ranks and engines that have met
        self.message: dict[str, Any] = {}  # what an engine has to know to receive

    async def send(self, version: int, engines: Sequence[Any], canary: Canary) -> tuple[SyncReport, None]:
        """See `weight_sync.Transport.send`."""
        started = time.monotonic()
        learner, call = self.learner, self.learner.call
        members = [*learner.ranks, *engines]
        if members != self.members:
            self.message, self.members = await self._join(engines), members
        await answers(call(engine, "start_update") for engine in engines)
        # Neither finishes without the other.
        sending = [call(rank, "send") for rank in learner.ranks]
        receiving = [call(engine, "receive_update", self.message) for engine in engines]
        [(_, checksum), *_] = await answers(sending + receiving)
        await answers(call(engine, "finish_update", version) for engine in engines)
        timeout = self.learner.config.learner.timeout
        gap = await verify_all(engines, version, checksum, canary, timeout)
        return SyncReport(time.monotonic() - started, gap, checksum), None

    async def _join(self, engines: Sequence[Any]) -> dict[str, Any]:
        """Put rank 0 and all workers of the engines into one NCCL group, in this order."""
        ranks, call = self.learner.ranks, self.learner.call
        workers = self.learner.config.rollout.tensor_parallel
        [(host, port)] = await answers([call(ranks[0], "address")])
        meeting = {
            "master_address": host,
            "master_port": port,
            "world_size": 1 + len(engines) * workers,
            # Packing needs gigabytes of buffers and its own streams, which DeepSpeed does not know.
            "packed": False,
        }
        joining = [call(rank, "join", meeting) for rank in ranks]
        joining += [
            call(engine, "init_transfer", meeting | {"rank_offset": 1 + index * workers})
            for index, engine in enumerate(engines)
        ]
        message: dict[str, Any] = (await answers(joining))[0]
        return message
