"""Send new weights to every engine, and verify that each engine computes with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hindsight.envs.runtime.remote import call
from hindsight.learner.group import DEADLINE, LearnerGroup
from hindsight.rollout.weights import WeightSet


class WeightSyncError(RuntimeError):
    """An engine does not have, or does not compute with, the learner's weights. The run must stop."""


@dataclass(frozen=True)
class SyncReport:
    """Duration and result of a weight sync."""

    seconds: float
    logprob_gap: float  # largest over the engines of the mean |log-prob gap| to the learner, nats
    checksum: str  # of the bytes that every engine loaded; empty after a broadcast


async def sync_weights(
    engines: Sequence[Any],
    weights: WeightSet,
    canary_ids: np.ndarray,
    learner_logprobs: np.ndarray,
    tolerance: float,
    timeout: float,
) -> SyncReport:
    """Load `weights` into all engines at once and verify each one.

    Args:
        engines: handles of `rollout.engine.Engine` actors.
        canary_ids: (L,) int32; learner_logprobs: (L - 1,) float32, the learner's log-probs of canary_ids[1:]
            under these weights.
        tolerance: largest mean |log-prob gap| that rounding may explain, nats.
        timeout: seconds for each call of an engine.

    Raises:
        RemoteError: an engine has died or missed the deadline.
        EngineError: an engine failed to load.
        WeightSyncError: an engine holds other weights, or computes with others.
    """
    started = time.monotonic()
    what = f"loading weights {weights.version}"
    await _ask_all(engines, "load_weights", weights, what=what, timeout=timeout)
    gap = await verify(
        engines, weights.version, weights.checksum, canary_ids, learner_logprobs, tolerance, timeout
    )
    return SyncReport(time.monotonic() - started, gap, weights.checksum)


async def broadcast(
    engines: Sequence[Any],
    learner: LearnerGroup,
    version: int,
    canary_ids: np.ndarray,
    learner_logprobs: np.ndarray,
    tolerance: float,
    timeout: float,
) -> SyncReport:
    """As `sync_weights`, from GPU to GPU by NCCL. No bytes are hashed, so the canary alone is proof.

    Raises: as `sync_weights`, and LearnerError if a rank or engine fails during the transfer.
    """
    started = time.monotonic()
    await learner.broadcast(version, engines)
    gap = await verify(engines, version, "", canary_ids, learner_logprobs, tolerance, timeout)
    return SyncReport(time.monotonic() - started, gap, "")


async def verify(
    engines: Sequence[Any],
    version: int,
    checksum: str,
    canary_ids: np.ndarray,
    learner_logprobs: np.ndarray,
    tolerance: float,
    timeout: float,
) -> float:
    """Check every engine's checksum and canary log-probs; return the largest mean gap.

    Raises: as `sync_weights`.
    """
    what = f"verifying weights {version}"
    held, scores = await asyncio.gather(
        _ask_all(engines, "fingerprint", what=what, timeout=timeout),
        _ask_all(engines, "score", canary_ids, what=what, timeout=timeout),
    )
    for index, found in enumerate(held):
        check_fingerprint(index, found, version, checksum)
    gaps = [check_canary(i, score, learner_logprobs, tolerance) for i, score in enumerate(scores)]
    return max(gaps, default=0.0)


def check_fingerprint(index: int, held: tuple[int, set[str]], version: int, checksum: str) -> None:
    """Raises WeightSyncError unless the engine loaded exactly the learner's bytes, as that version."""
    if held == (version, {checksum}):
        return
    raise WeightSyncError(
        f"engine {index} loaded weights {held[0]} with checksum {_short(held[1])}, the learner published "
        f"weights {version} with checksum {_short({checksum})}: other bytes arrived than were sent, so what "
        "this engine samples is not the learner's policy. Resume from the last checkpoint."
    )


def check_canary(index: int, engine: np.ndarray, learner: np.ndarray, tolerance: float) -> float:
    """Mean |log-prob gap| on the canary. WeightSyncError where it is above `tolerance` or not a number."""
    gap = float(np.abs(engine.astype(np.float64) - learner.astype(np.float64)).mean())
    if gap <= tolerance:
        return gap
    means = f"mean log-prob: engine {engine.mean():.4f}, learner {learner.mean():.4f}"
    raise WeightSyncError(
        f"engine {index} received the learner's weights, but its canary log-probs are off by {gap:.4f} "
        f"on average (weight_sync.max_logprob_gap={tolerance}; {means}): a part of its model still computes "
        "with other weights, or engine and learner run the model differently. If only rounding can explain "
        "it (a larger model in bfloat16), raise weight_sync.max_logprob_gap."
    )


async def _ask_all(engines: Sequence[Any], method: str, *args: Any, what: str, timeout: float) -> list[Any]:
    """Call a method of all engines at the same time."""
    return await asyncio.gather(
        *(
            call(engine, method, *args, timeout=timeout, setting=DEADLINE, what=f"{what} on engine {index}")
            for index, engine in enumerate(engines)
        )
    )


def _short(checksums: set[str]) -> str:
    return " and ".join(sorted(checksum[:12] or "none" for checksum in checksums))
