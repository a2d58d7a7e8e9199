"""Turns on a GPU: roles that do not fit on it together use it one after the other.

While one role works, the others keep their weights on the host. A role's turn ends when nothing that holds
it is left, so a step changes hands as often as it changes its phase: rollout, scoring, update, rollout.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hindsight.cluster.failures import RunError
from hindsight.envs.runtime.remote import RemoteDefect, RemoteError

Switch = Callable[[], Awaitable[object]]


class TurnError(RunError):
    """A role could not leave its GPU or return to it."""


@dataclass
class Turns:
    """Tracks which role holds the GPU. With no roles registered, callers never wait."""

    sleep: dict[str, Switch] = field(default_factory=dict)  # by role: leave the GPU
    wake: dict[str, Switch] = field(default_factory=dict)  # by role: return to it
    awake: str | None = None
    holders: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @asynccontextmanager
    async def of(self, role: str) -> AsyncIterator[None]:
        """Hold the role's turn. Asking for another role's turn inside would wait forever.

        Raises:
            TurnError: a role could not leave the GPU or return to it.
        """
        if role not in self.wake:
            yield
            return
        async with self.changed:
            await self.changed.wait_for(lambda: self.awake == role or not self.holders)
            if self.awake != role:
                await self._switch(role)
            self.holders += 1
        try:
            yield
        finally:
            async with self.changed:
                self.holders -= 1
                self.changed.notify_all()

    async def add(self, role: str, sleep: Switch, wake: Switch) -> None:
        """Add a role that has its GPU now, and take it away."""
        await sleep()
        self.sleep[role], self.wake[role] = sleep, wake

    async def _switch(self, role: str) -> None:
        try:
            if self.awake is not None:
                await self.sleep[self.awake]()
                self.awake = None
            await self.wake[role]()
        except (RemoteError, RemoteDefect) as error:  # who is on the GPU now is unknown, so the run must end
            raise TurnError(f"the GPU could not be handed to the {role}: {error}") from error
        self.awake = role
