"""The learner as the driver sees it: one object over all ranks, whose every wait has a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from configs.schema import Config
from learner.losses import merge, report
from learner.pack import over_ranks, split
from learner.rank import LearnerError, Rank, learner_env
from learner.rows import Row
from rollout.weights import WeightSet

# Most bytes a parameter takes in a checkpoint: weight, float32 master copy, two Adam moments.
STATE_BYTES = 16


class LearnerGroup:
    """The DeepSpeed ranks. Calls must not overlap: each waits for all ranks."""

    def __init__(self, config: Config, model: str, places: Sequence[dict[str, Any]] = ()) -> None:
        """
        Args:
            model: folder or hub name of the causal LM to train.
            places: Ray actor options of each rank (num_cpus, num_gpus, scheduling_strategy).
        """
        self.config, self.model = config, model
        self.places = list(places) or [{"num_cpus": 1}] * config.learner.ranks
        self.ranks: list[Any] = []
        self.checkpoint_bytes = 0  # estimated size of what `save` writes; known after `start`

    async def start(self) -> dict[str, float]:
        """Start the ranks and load the model; returns its parameters and the seconds it took."""
        began = time.monotonic()
        env = {"env_vars": learner_env(self.config, gpu=self.places[0].get("num_gpus", 0) > 0)}
        actor = ray.remote(Rank)
        self.ranks = [
            actor.options(runtime_env=env, **place).remote(self.config, self.model, rank)
            for rank, place in enumerate(self.places)
        ]
        limit = self.config.cluster.start_timeout
        [(host, port)] = await _answers("address", [self.ranks[0].address.remote()], limit)
        starts = [rank.start.remote(host, port) for rank in self.ranks]
        parameters = (await _answers("start", starts, limit))[0]
        self.checkpoint_bytes = parameters * STATE_BYTES
        return {"parameters": float(parameters), "seconds": time.monotonic() - began}

    async def update(
        self, rows: Sequence[Row], objective: str, strength: float, lr: float
    ) -> dict[str, float]:
        """Train on the rows once; returns the statistics of `learner.losses.report` and this call's costs.

        Args:
            objective: "policy", in `config.learner.updates` optimiser steps, or "imitation", in one.
            strength: λ of this step; 0 is plain GRPO. lr: learning rate of every optimiser step.

        Raises:
            ValueError: there are no rows or the objective is unknown.
            LearnerError: a rank failed or missed its deadline, or the numbers are not finite.
        """
        if not rows or objective not in ("policy", "imitation"):
            raise ValueError(
                f"an update needs rows (got {len(rows)}) and policy or imitation (got {objective})"
            )
        began = time.monotonic()
        learner = self.config.learner
        parts = split(rows, learner.updates if objective == "policy" else 1)
        weigh = len if objective == "policy" else np.sum
        tokens = [float(sum(weigh(row.advantages) for row in part)) for part in parts]
        plans = [
            over_ranks([len(row.ids) for row in part], learner.micro_tokens, learner.ranks) for part in parts
        ]
        work = [
            [
                [[part[i] for i in micro] for micro in plan[rank]]
                for part, plan in zip(parts, plans, strict=True)
            ]
            for rank in range(learner.ranks)
        ]
        calls = [
            rank.update.remote(share, tokens, objective, strength, lr)
            for rank, share in zip(self.ranks, work, strict=True)
        ]
        sums = await _answers("update", calls, learner.timeout)
        return report(merge(sums), sum(tokens)) | {
            "grad_norm": sums[0]["grad_norm"],
            "lr": lr,
            "strength": strength,
            "tokens": sum(tokens),
            "tokens_read": float(sum(len(row.ids) for row in rows)),
            "rows": float(len(rows)),
            "micro_batches": float(sum(len(plan[0]) for plan in plans)),
            "seconds": time.monotonic() - began,
        }

    async def export(self, version: int) -> WeightSet:
        """The current weights, in the object store."""
        return (await self._same("export", version))[0]

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """(L − 1,) float32 log-probs of ids[1:] at temperature 1."""
        return (await self._same("score", ids))[0]

    async def save(self, folder: Path | str) -> None:
        """Write weights and optimiser state into an existing folder that all ranks see."""
        await self._same("save", str(folder))

    async def load(self, folder: Path | str) -> None:
        """Take over what `save` wrote with as many ranks and the same ZeRO stage."""
        await self._same("load", str(folder))

    async def save_model(self, folder: Path | str) -> None:
        """Write a model folder that transformers and vLLM load."""
        await self._same("save_model", str(folder))

    def stop(self) -> None:
        """End the ranks."""
        for rank in self.ranks:
            ray.kill(rank)
        self.ranks = []

    async def _same(self, method: str, *args: Any) -> list[Any]:
        """Call a collective method with the same arguments on every rank."""
        if not self.ranks:
            raise LearnerError(f"learner.{method}: the ranks are not running; call start first")
        calls = [getattr(rank, method).remote(*args) for rank in self.ranks]
        return await _answers(method, calls, self.config.learner.timeout)


async def _answers(method: str, calls: list[Any], seconds: float) -> list[Any]:
    """Every rank's answer; the first failure or the deadline ends the wait."""

    async def wait(call: Any) -> Any:
        return await call

    try:
        return await asyncio.wait_for(asyncio.gather(*(wait(call) for call in calls)), seconds)
    except TimeoutError as error:
        raise LearnerError(
            f"learner.{method} took over {seconds:.0f} s: raise learner.timeout "
            "(for start: cluster.start_timeout), or look for a rank that waits in a collective"
        ) from error
    except RayError as error:
        raise LearnerError(f"learner.{method} failed on a rank: {error}") from error
