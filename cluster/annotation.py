"""Requests to teacher, judge and reference policy, started while the group is still rolling out.

episodes   ──●─────────●──────────●─────●         ● over
asked        └─ 0       └─ 1       └─ 2  └─ 3     each as soon as what it needs is over (`feedback.needs`)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from hindsight.envs.runtime.remote import ActorUnavailable, AnswerLost, RemoteDefect, RemoteTimeout
from hindsight.feedback.needs import Needs, ready_parts
from hindsight.learner.samples import OpenGroup, SampleGroup
from hindsight.rollout.types import Failure, Group, Trajectory


@dataclass(frozen=True)
class Inquiry:
    """Something that is asked about trajectories; the answers are columns of their samples."""

    ask: Callable[[SampleGroup, Sequence[int]], Awaitable[None]]  # about the trajectories with these indices
    needs: Needs
    compares: bool  # whether nothing is asked about a group whose advantages are all 0

    async def about(self, group: SampleGroup, indices: Sequence[int]) -> Failure | None:
        """Ask; return a failure that costs the answers alone."""
        try:
            await self.ask(group, indices)
        except (RemoteTimeout, ActorUnavailable, AnswerLost, RemoteDefect) as error:
            return Failure("teacher", str(error), group.group.task.id)
        return None


class Annotation:
    """The inquiries about one group. Leaving its block ends those under way.

    A part of the group is asked about once. After an inquiry fails, its remaining parts are skipped; the
    failure is counted once.
    """

    def __init__(
        self, group: OpenGroup, inquiries: Sequence[Inquiry], differ: Callable[[Group], bool]
    ) -> None:
        """
        Args:
            differ: whether the advantages of a group are not all 0. They are computed for the trajectories
                that are over, until they differ.
        """
        self.group, self.inquiries = group, inquiries
        self._differ, self._differs = differ, False
        self._asking: dict[tuple[int, tuple[int, ...]], asyncio.Task[SampleGroup]] = {}
        self._failed: set[int] = set()

    async def __aenter__(self) -> Annotation:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def go_on(self) -> None:
        """Ask what can be asked now; call it whenever more of the group is known."""
        if self.group.reference is None:
            return
        for number, inquiry in enumerate(self.inquiries):
            found = ready_parts(self.group.episodes, inquiry.needs)
            new = [part for part in found if (number, part) not in self._asking]
            if new and (not inquiry.compares or self._advantages_differ()):
                self._asking |= {(number, part): asyncio.create_task(self._ask(number, part)) for part in new}

    async def end(self) -> SampleGroup:
        """Wait for all answers to what `go_on` has asked; return the whole group."""
        await asyncio.gather(*self._asking.values())
        whole = self.group.so_far()
        for _, asked in sorted(self._asking.items()):  # not in the order of answers
            whole.take(asked.result())
        return whole

    async def _ask(self, number: int, part: tuple[int, ...]) -> SampleGroup:
        """Ask about a part; return the group as it was known then, with what was found."""
        seen = self.group.so_far()
        seen.failures = []
        over = [index for index, one in enumerate(self.group.episodes) if isinstance(one, Trajectory)]
        if number in self._failed:
            return seen
        failure = await self.inquiries[number].about(seen, [over.index(index) for index in part])
        if failure and number not in self._failed:
            self._failed.add(number)
            seen.failures.append(failure)
        return seen

    def _advantages_differ(self) -> bool:
        self._differs = self._differs or self._differ(self.group.so_far().group)
        return self._differs
