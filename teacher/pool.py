"""Replicas of one scorer, which work in parallel on different trajectories.

Ray replaces a lost replica; the pool gives the new process the weights of the last sync and asks it again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.envs.runtime.remote import ActorUnavailable, AnswerLost, await_remote, back, call
from hindsight.rollout.segment import SegmentUnreachable
from hindsight.rollout.weights import WeightSet
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.scorer import Outdated, Scored

Worked = tuple[float, float]  # from when to when a replica worked, in seconds since the epoch


class ScorerPool:
    """The teacher, or the reference policy: equal `TeacherScorer` actors behind one queue."""

    def __init__(
        self,
        role: str,
        replicas: Sequence[Any],
        timeout: float,
        turn: Callable[[str], AbstractAsyncContextManager[None]],
        note: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        """
        Args:
            timeout: of one call (s), which the setting `teacher.timeout` sets.
            turn: holds the role's turn on its GPU (`cluster.turns`).
            note: told of each replaced replica: the role, and the seconds until it worked again.
        """
        self.role, self.replicas = role, list(replicas)
        self.context = 0  # longest request in tokens; known after `ready`
        self.version = 0  # of the weights that every replica has
        self._kept: WeightSet | None = None  # those weights, for a new process; None: it starts with them
        self._note, self.start_timeout = note, math.inf
        self._limit: dict[str, Any] = {"timeout": timeout, "setting": "teacher.timeout"}
        self._turn = turn
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for replica in self.replicas:
            self._free.put_nowait(replica)

    async def ready(self, timeout: float) -> None:
        """Wait until every replica has loaded its model, at most `timeout` s (`cluster.start_timeout`)."""
        self.start_timeout = timeout
        limit = {"timeout": timeout, "setting": "cluster.start_timeout"}
        found = await self._all("ready", what=f"starting the {self.role}", **limit)
        self.context, self.version = min(one["context"] for one in found), found[0]["version"]

    async def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest], what: str
    ) -> tuple[list[Scored], list[Worked]]:
        """One answer per request, in order, and when each replica worked for them.

        All answers are by the weights of one version.

        Args:
            sequences: per trajectory, the ids of its sequences, (L,) int32 each.
            what: describes the call in errors.

        Raises:
            RemoteError, RemoteDefect: a replica died, failed or missed the deadline.
        """
        async with self._turn(self.role):
            replicas = [await self._free.get()]  # waits behind other calls
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
        return [found[index] for index in range(len(requests))], [worked for _, worked in answers]

    async def _ask(
        self,
        replica: Any,
        part: Sequence[int],
        sequences: Sequence[Sequence[np.ndarray]],
        requests: Sequence[ScoreRequest],
        what: str,
    ) -> tuple[list[Scored], Worked]:
        """One replica's part of the answers, and when it worked; it is free again afterwards."""
        own, began = [requests[index] for index in part], time.time()
        try:
            scored = await self._call(replica, "score", sequences, own, self.version, what=what)
            return scored, (began, time.time())
        finally:
            self._free.put_nowait(replica)

    async def load_weights(self, weights: WeightSet, whole: bool) -> None:
        """Move every replica toward the student's weights, or copy them; see `TeacherScorer.load_weights`.

        Waits for calls under way: one call is answered by one version.
        """
        held = [await self._free.get() for _ in self.replicas]
        move = (weights, whole, self.version)
        try:
            await self._all("load_weights", *move, what=f"syncing the {self.role}")
            self._kept = weights if whole else await self._snapshot(weights.version, "load_weights", *move)
            self.version = weights.version
        finally:
            for replica in held:
                self._free.put_nowait(replica)

    @property
    def kept(self) -> int | None:
        """Version of the learner's weights that a new process would read from shared memory, if any."""
        return self._kept.version if self._kept and self._kept.segment else None

    async def save(self, path: Path) -> None:
        """Write the weights, which all replicas share, to a safetensors file."""
        await self._call(self.replicas[0], "save", str(path), self.version, what=f"saving the {self.role}")

    async def load(self, path: Path) -> None:
        """Load on every replica what `save` wrote."""
        [self.version, *_] = await self._all("load", str(path), what=f"restoring the {self.role}")
        self._kept = await self._snapshot(self.version, "load", str(path))

    async def _snapshot(self, version: int, *last: Any) -> WeightSet:
        """A copy of the weights in the object store, which does not end with a replica.

        Args:
            last: method and arguments of the call that changed them, for a replica that is lost right after.
        """
        replica, what = self.replicas[0], f"keeping the weights of the {self.role}"
        while True:
            about, flat = replica.snapshot.options(num_returns=2).remote(version)
            try:
                version, layout, checksum = await await_remote(about, what=what, **self._limit)
                return WeightSet(version, layout, checksum, flat)
            except (ActorUnavailable, Outdated):
                await self._call(replica, *last, what=what)

    async def sleep(self) -> None:
        """Move every replica's weights to the host."""
        await self._all("to_host", what=f"moving the {self.role} off the GPU")

    async def wake(self) -> None:
        """Move every replica's weights back to its GPU."""
        await self._all("to_device", what=f"moving the {self.role} to the GPU")

    async def _all(self, method: str, *args: Any, what: str, **limit: Any) -> list[Any]:
        return await asyncio.gather(
            *(self._call(replica, method, *args, what=what, **limit) for replica in self.replicas)
        )

    async def _call(self, replica: Any, method: str, *args: Any, what: str, **limit: Any) -> Any:
        """Call a replica; if its process was replaced, give it its weights and call again."""
        while True:
            try:
                return await call(replica, method, *args, what=what, **limit or self._limit)
            except (ActorUnavailable, Outdated) as error:
                if self._kept is None and isinstance(error, Outdated):
                    raise  # a new process would have what the old one started with
                began = time.monotonic()
                await back(replica, timeout=self.start_timeout)
                overwrites = method == "load" or (method == "load_weights" and args[1])  # all weights
                if self._kept is not None and not overwrites:
                    await self._restore(replica, self._kept)
                self._note(self.role, time.monotonic() - began)

    async def _restore(self, replica: Any, weights: WeightSet) -> None:
        """Give a new process the weights of the last sync.

        Raises:
            AnswerLost: they were in the memory of a learner that is lost too.
        """
        restoring = f"restoring the {self.role}"
        try:
            await call(replica, "load_weights", weights, what=restoring, **self._limit)
        except SegmentUnreachable as error:
            raise AnswerLost(f"{restoring}: {error}") from error


def spread(requests: Sequence[ScoreRequest], parts: int) -> list[list[int]]:
    """Split requests (their indices) by trajectory into at most `parts` parts of about equal work.

    Requests on one trajectory stay together: they share its prefix. The longest trajectories are placed
    first, each into the part with the fewest tokens so far.
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
