"""Weights within a GPU that learner and engine share, by CUDA IPC (`weight_sync.transport=ipc`).

Not yet run on a GPU. Nothing is sent: rank 0 collects handles of every rank's parameters, by GPU, and each
engine opens those of its own GPU and loads from the learner's memory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hindsight.learner.group import LearnerGroup, answers
from hindsight.learner.weight_sync import Canary, SyncReport, verify_all

MEETING = {"packed": False}  # parameters are whole on every rank below ZeRO-3, so no copies are needed


class Ipc:
    """See `weight_sync.Transport`."""

    def __init__(self, learner: LearnerGroup) -> None:
        self.learner = learner
        self.members: list[Any] = []  # ranks and engines that are ready

    async def send(self, version: int, engines: Sequence[Any], canary: Canary) -> tuple[SyncReport, None]:
        """See `weight_sync.Transport.send`."""
        started = time.monotonic()
        ranks, call = self.learner.ranks, self.learner.call
        members = [*ranks, *engines]
        if members != self.members:
            joining = [call(rank, "join", MEETING) for rank in ranks]
            await answers(joining + [call(engine, "init_transfer", MEETING) for engine in engines])
            self.members = members
        [(update, checksum), *_] = await answers(call(rank, "send") for rank in ranks)
        await answers(call(engine, "start_update") for engine in engines)
        await answers(call(engine, "receive_update", update) for engine in engines)
        await answers(call(engine, "finish_update", version) for engine in engines)
        timeout = self.learner.config.learner.timeout
        gap = await verify_all(engines, version, checksum, canary, timeout)
        return SyncReport(time.monotonic() - started, gap, checksum), None
