"""Replicas of one scorer: groups are scored side by side, and a group by all replicas that are free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.envs.runtime.remote import call
from hindsight.rollout.weights import WeightSet
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.scorer import Scored


class ScorerPool:
    """The teacher, or the reference policy: equal `TeacherScorer` actors behind one queue."""

    def __init__(
        self,
        role: str,
        replicas: Sequence[Any],
        timeout: float,
        turn: Callable[[str], AbstractAsyncContextManager[None]],
    ) -> None:
        """
        Args:
            timeout: of one call (s), which the setting `teacher.timeout` sets.
            turn: holds the role's turn on its GPU (`cluster.turns`).
        """
        self.role, self.replicas = role, list(replicas)
        self.context = 0  # longest request in tokens; known after `ready`
        self._limit: dict[str, Any] = {"timeout": timeout, "setting": "teacher.timeout"}
        self._turn = turn
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for replica in self.replicas:
            self._free.put_nowait(replica)

    async def ready(self, timeout: float, setting: str) -> None:
        """Wait until every replica has loaded its model."""
        found = await self._all("ready", what=f"starting the {self.role}", timeout=timeout, setting=setting)
        self.context = min(one["context"] for one in found)

    async def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest], what: str
    ) -> tuple[list[Scored], float]:
        """One answer per request, in order, and the seconds that replicas worked for them.

        Args:
            sequences: per trajectory, the ids of its sequences, (L,) int32 each.
            what: describes the call in errors.

        Raises:
            RemoteError, RemoteDefect: a replica died, failed or missed the deadline.
        """
        async with self._turn(self.role):
            replicas = [await self._free.get()]  # waits behind other groups
            while len(replicas) < len({one.trajectory for one in requests}) and not self._free.empty():
                replicas.append(self._free.get_nowait())
            parts = spread(requests, len(replicas))
            asking = [
                asyncio.ensure_future(self._ask(*pair, sequences, requests, what))
                for pair in zip(replicas, parts, strict=True)
            ]
            # Also if one fails: the turn must not end while another is at work.
            await asyncio.gather(*asking, return_exceptions=True)
        answers = [asked.result() for asked in asking]
        found: dict[int, Scored] = {}
        for part, (scored, _) in zip(parts, answers, strict=True):
            found.update(zip(part, scored, strict=True))
        return [found[index] for index in range(len(requests))], sum(seconds for _, seconds in answers)

    async def _ask(
        self,
        replica: Any,
        part: Sequence[int],
        sequences: Sequence[Sequence[np.ndarray]],
        requests: Sequence[ScoreRequest],
        what: str,
    ) -> tuple[list[Scored], float]:
        """One replica's part of the answers, and its seconds; it is free again afterwards."""
        own, began = [requests[index] for index in part], time.monotonic()
        try:
            scored = await call(replica, "score", sequences, own, what=what, **self._limit)
            return scored, time.monotonic() - began
        finally:
            self._free.put_nowait(replica)

    async def load_weights(self, weights: WeightSet, whole: bool) -> None:
        """Move every replica toward the student's weights, or copy them; see `TeacherScorer.load_weights`.

        Waits for calls under way: one group is scored by one version.
        """
        held = [await self._free.get() for _ in self.replicas]
        try:
            await self._all("load_weights", weights, whole, what=f"syncing the {self.role}")
        finally:
            for replica in held:
                self._free.put_nowait(replica)

    async def save(self, path: Path) -> None:
        """Write the weights, which all replicas share, to a safetensors file."""
        what = f"saving the {self.role}"
        await call(self.replicas[0], "save", str(path), what=what, **self._limit)

    async def load(self, path: Path) -> None:
        """Load on every replica what `save` wrote."""
        await self._all("load", str(path), what=f"restoring the {self.role}")

    async def sleep(self) -> None:
        """Move every replica's weights to the host."""
        await self._all("to_host", what=f"moving the {self.role} off the GPU")

    async def wake(self) -> None:
        """Move every replica's weights back to its GPU."""
        await self._all("to_device", what=f"moving the {self.role} to the GPU")

    async def _all(self, method: str, *args: Any, what: str, **limit: Any) -> list[Any]:
        limit = limit or self._limit
        return await asyncio.gather(
            *(call(replica, method, *args, what=what, **limit) for replica in self.replicas)
        )


def spread(requests: Sequence[ScoreRequest], parts: int) -> list[list[int]]:
    """Split requests (their indices) by trajectory into at most so many parts of about equal work.

    Requests on one trajectory stay together: they share its prefix. The longest trajectories are placed
    first, each into the part with the least tokens so far.
    """
    work: dict[int, int] = {}
    for one in requests:
        work[one.trajectory] = max(work.get(one.trajectory, 0), one.cut) + len(one.tail)
    loads, place = [0] * max(1, min(parts, len(work))), dict[int, int]()
    for trajectory in sorted(work, key=lambda key: (-work[key], key)):
        place[trajectory] = loads.index(min(loads))
        loads[place[trajectory]] += work[trajectory]
    made: list[list[int]] = [[] for _ in loads]
    for index, one in enumerate(requests):
        made[place[one.trajectory]].append(index)
    return made
