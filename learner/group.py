"""The learner as the driver sees it: one object for all DeepSpeed ranks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray

from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import RemoteDefect, RemoteError, call
from hindsight.learner.batching import over_ranks
from hindsight.learner.losses import Objective, merge, report
from hindsight.learner.plan import plan_updates, weigh
from hindsight.learner.policy import PolicyRank
from hindsight.learner.rank import LearnerError, Rank, RanksLost, learner_env
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.weights import WeightSet

log = logging.getLogger(__name__)
DEADLINE = "learner.timeout"  # the setting that limits every call after the start
# Bytes per parameter in a checkpoint, at most: float32 weight, two Adam moments, and the weight in the model
# that is saved for other tools, which has the frozen ones too.
STATE_BYTES, FROZEN_BYTES = 16, 4
NEWS = 10.0  # seconds in which Ray tells that an actor is lost


class RankGroup:
    """The DeepSpeed ranks of one model. Each call goes to all of them; overlapping calls run in order."""

    RANK: ClassVar[type[Rank]]
    OBJECTIVES: ClassVar[tuple[Objective, ...]]

    def __init__(
        self,
        config: Config,
        model: str,
        places: Sequence[dict[str, Any]] = (),
        turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            model: folder or hub name of the causal LM to train.
            places: Ray actor options of each rank (num_cpus, num_gpus, scheduling_strategy, runtime_env).
            turn: holds the learner's turn on its GPUs (`cluster.turns`).
        """
        self.config, self.model, self.turn = config, model, turn
        self.places = list(places) or [{"num_cpus": 1}] * config.learner.ranks
        self.ranks: list[Any] = []
        self.alone = False  # whether the model reads one row at a time (`packing.obstacle`)
        self.checkpoint_bytes = 0  # estimated size of what `save` writes; known after `start`

    async def start(self) -> dict[str, float]:
        """Start the ranks and load the model; returns parameters, how many are trained, and seconds."""
        began = time.monotonic()
        gpu = self.places[0].get("num_gpus", 0) > 0
        env, actor = learner_env(self.config, gpu), ray.remote(self.RANK)
        self.ranks = []
        for rank, place in enumerate(self.places):
            own = place.get("runtime_env", {}).get("env_vars", {})
            options = place | {"runtime_env": {"env_vars": env | own}}
            self.ranks.append(actor.options(**options).remote(self.config, self.model, rank))
        limit = {"timeout": self.config.cluster.start_timeout, "setting": "cluster.start_timeout"}
        [(host, port)] = await answers([self.call(self.ranks[0], "host", **limit)])
        starts = [self.call(rank, "start", host, port, **limit) for rank in self.ranks]
        parameters, trained, alone = (await answers(starts))[0]
        self.alone = bool(alone)
        if alone:
            log.warning("%s reads one row at a time, so updates are slower: %s", self.model, alone)
        frozen = parameters if self.config.learner.lora.rank else 0
        self.checkpoint_bytes = trained * STATE_BYTES + frozen * FROZEN_BYTES
        seconds = time.monotonic() - began
        return {"parameters": float(parameters), "trained": float(trained), "seconds": seconds}

    async def update(
        self, samples: Mapping[Objective, Sequence[TrainingSample]], strength: float, lr: float
    ) -> dict[str, float]:
        """Train on the samples once; return the statistics of `learner.losses.report` and the costs.

        Args:
            samples: by loss: "policy" and "signal", whose weighted sum is minimized, in
                `config.learner.mini_batches` optimizer steps; or "sft", in one.
            strength: λ of this step; 0 is plain GRPO. lr: learning rate of every optimizer step.

        Raises:
            ValueError: there are no samples or a loss is unknown.
            LearnerError: a rank failed or missed its deadline, or the numbers are not finite.
        """
        samples = {objective: own for objective, own in samples.items() if own}
        if not samples or set(samples) - set(self.OBJECTIVES):
            known = ", ".join(self.OBJECTIVES)
            raise ValueError(f"an update needs samples for one of {known} (got {list(samples)})")
        began = time.monotonic()
        plans = [
            plan_updates(objective, own, self.config, weigh(objective, self.config), self.alone)
            for objective, own in samples.items()
        ]
        work = [
            [
                [
                    (plan.objective, micro, plan.scales[step])
                    for plan in plans
                    for micro in plan.work[rank][step]
                ]
                for step in range(len(plans[0].scales))
            ]
            for rank in range(self.config.learner.ranks)
        ]
        sums = await self._together(
            self.call(rank, "update", share, strength, lr)
            for rank, share in zip(self.ranks, work, strict=True)
        )
        stats: dict[str, float] = {}
        for plan in plans:
            merged = merge(part[plan.objective] for part, _ in sums)
            stats |= report(plan.objective, merged, plan.tokens, plan.denominator)
        return stats | {
            "grad_norm": sums[0][1],
            "lr": lr,
            "strength": strength,
            "tokens": sum(plan.tokens for plan in plans),
            "tokens_read": float(sum(len(sample.ids) for own in samples.values() for sample in own)),
            "samples": float(sum(map(len, samples.values()))),
            "micro_batches": float(sum(map(len, work[0]))),
            "seconds": time.monotonic() - began,
        }

    async def reset_optimizer(self) -> None:
        """Reset the optimizer's moments and step count, for another loss."""
        await self._same("reset_optimizer")

    async def save(self, folder: Path | str) -> None:
        """Write weights and optimizer state into an existing folder that all ranks see.

        Raises:
            RemoteDefect: a rank could not write its part.
        """
        await self._write("save", str(folder))

    async def load(self, folder: Path | str) -> None:
        """Load what `save` wrote, with any number of ranks and ZeRO stage."""
        await self._same("load", str(folder))

    async def move(self, method: str) -> None:
        """Move the ranks off their GPUs or back: "to_host" or "to_device"."""
        await answers(self.call(rank, method) for rank in self.ranks)

    def stop(self) -> None:
        """End the ranks."""
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks = []

    async def _per_sample(
        self, method: str, samples: Sequence[TrainingSample], *args: Any
    ) -> list[np.ndarray]:
        """Call a method of the ranks that takes micro-batches; return its result for each sample."""
        learner = self.config.learner
        budget = 1 if self.alone else learner.micro_batch_tokens
        places = over_ranks([sample.ids for sample in samples], budget, learner.ranks)
        calls = [
            self.call(rank, method, [[samples[i] for i in micro] for micro in place], *args)
            for rank, place in zip(self.ranks, places, strict=True)
        ]
        found: dict[int, np.ndarray] = {}
        for place, answer in zip(places, await self._together(calls), strict=True):
            for micro, arrays in zip(place, answer, strict=True):
                found.update(zip(micro, arrays, strict=True))
        return [found[index] for index in range(len(samples))]

    async def _same(self, method: str, *args: Any) -> list[Any]:
        """Call a collective method with the same arguments on every rank."""
        if not self.ranks:
            raise LearnerError(f"learner.{method}: the ranks are not running; call start first")
        return await self._together(self.call(rank, method, *args) for rank in self.ranks)

    async def _write(self, method: str, folder: str) -> None:
        """Call a method that writes on every rank. If one fails, the others first finish: the caller may then
        remove what they have written.
        """

        if not self.ranks:
            raise LearnerError(f"learner.{method}: the ranks are not running")

        async def attempt(rank: Any) -> RemoteDefect | None:
            try:
                await self.call(rank, method, folder)
            except RemoteDefect as error:
                return error
            return None

        for failed in filter(None, await self._together(attempt(rank) for rank in self.ranks)):
            raise failed

    async def _together(self, calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        """`answers`, in the learner's turn."""
        async with self.turn():
            return await answers(calls)

    def call(self, actor: Any, method: str, *args: Any, **limit: Any) -> Coroutine[Any, Any, Any]:
        """Call one actor, with `learner.timeout` by default."""
        limit = limit or {"timeout": self.config.learner.timeout, "setting": DEADLINE}
        return call(actor, method, *args, what=f"learner.{method}", **limit)


class LearnerGroup(RankGroup):
    """The policy's ranks."""

    RANK = PolicyRank
    OBJECTIVES = ("policy", "signal", "sft")

    async def candidates(self, samples: Sequence[TrainingSample], k: int) -> list[np.ndarray]:
        """Per sample, (P, k) int32: the student's k most likely tokens at each position, in order."""
        return await self._per_sample("candidates", samples, k)

    async def export(self, version: int, kept: Collection[int] = (), copied: bool = True) -> WeightSet:
        """Share what is trained, all weights or the adapter; see `PolicyRank.export`."""
        return (await self._same("export", version, kept, copied))[0]

    async def export_merged(self, version: int) -> WeightSet:
        """Put all weights into the object store, with an adapter merged in float32."""
        return (await self._same("export_merged", version))[0]

    async def export_average(self, version: int, share: float) -> WeightSet:
        """Move the adapter's average by `share` toward the adapter, and put it into the object store."""
        return (await self._same("export_average", version, share))[0]

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """(L − 1,) float32 log-probs of ids[1:] at temperature 1."""
        return (await self._same("score", ids))[0]

    async def save_model(self, folder: Path | str) -> None:
        """Write a model folder that transformers and vLLM load.

        Raises:
            RemoteDefect: it could not be written.
        """
        await self._write("save_model", str(folder))


async def answers(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await calls that run at the same time; the first failure ends the wait.

    Raises:
        RanksLost: an actor died or timed out; it may be waiting in a collective for another one.
        LearnerError: an actor failed.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except RemoteError as error:
        raise RanksLost(str(error)) from error
    except RemoteDefect as error:
        # Ranks in a collective with a lost one may fail before Ray tells that it is lost.
        done, _ = await asyncio.wait(tasks, timeout=NEWS)
        lost = [task.exception() for task in done if isinstance(task.exception(), RemoteError)]
        raise RanksLost(str(lost[0])) if lost else LearnerError(str(error)) from error
    finally:
        for task in tasks:
            task.cancel()
