"""The learner's weights on their way to whoever follows it: engines, and the scorers of the method."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hindsight.cluster.heal import Watched, keep
from hindsight.cluster.method import Method
from hindsight.cluster.run import Run
from hindsight.envs.runtime.remote import call
from hindsight.learner.group import DEADLINE, LearnerGroup
from hindsight.learner.weight_sync import Canary, SyncReport, broadcast, sync_weights
from hindsight.rollout.weights import WeightSet


class Publisher:
    """Syncs weights after each step, and with engines whose process was replaced."""

    def __init__(self, run: Run, method: Method) -> None:
        self.run, self.config, self.actors, self.method = run, run.config, run.actors, method

    @property
    def learner(self) -> LearnerGroup:
        """The learner; a training run always has one."""
        assert self.actors.learner is not None
        return self.actors.learner

    async def sync(self, step: int = 0, everywhere: bool = False) -> SyncReport:
        """Send the new weights to every engine, verify them there, and let the method sync its copies.

        Args:
            step: number of the training step that has just finished; 0: none has.
            everywhere: whether all copies start from these weights.
        """
        self.run.now("syncing weights")
        self.run.state.version += 1
        report, weights = await self.publish(self.actors.engines)
        await self.method.sync(step, self.run.state.version, weights, everywhere)
        return report

    async def publish(self, engines: Sequence[Any]) -> tuple[SyncReport, WeightSet | None]:
        """Send the weights to engines and verify them; returns them as well, unless they were broadcast."""
        run, config = self.run, self.config
        expected, timeout = await self.learner.score(run.canary), config.learner.timeout
        canary = Canary(run.canary, expected, config.weight_sync.max_logprob_gap)
        if config.broadcasts:
            return await broadcast(engines, self.learner, run.state.version, canary, timeout), None
        weights = await self.learner.export(run.state.version)
        async with self.actors.turns.of("engine"):
            starting = config.cluster.start_timeout
            return await sync_weights(engines, weights, canary, timeout, starting), weights

    async def keep(self) -> None:
        """Until cancelled, count replaced processes; engines among them get the weights of the last sync."""
        engines = [Watched("engine", one, partial(self.bring, one)) for one in self.actors.engines]
        await keep(
            [*engines, *self.actors.stateless], self.actors.restarts, self.config.cluster.start_timeout
        )

    async def bring(self, engine: Any) -> None:
        """Make an engine serve what the others serve.

        Raises:
            RanksLost: the learner was lost as well.
        """
        async with self.run.changes:  # the learner's weights are those of the last sync
            limit: dict[str, Any] = {"timeout": self.config.learner.timeout, "setting": DEADLINE}
            if await call(engine, "serves", **limit):  # a sync came first
                return
            if self.run.state.version == 0:
                await call(engine, "serve", **limit)
            elif self.config.broadcasts:  # the group of processes that receive is broken: all meet again
                self.learner.message = None
                await self.publish(self.actors.engines)
            else:
                await self.publish([engine])
