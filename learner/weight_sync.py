"""How new weights reach the engines, and the proof that each engine computes with them.

A `Transport` is one of `weight_sync_store`, `weight_sync_nccl` and `weight_sync_ipc`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hindsight.envs.runtime.remote import call
from hindsight.learner.group import DEADLINE
from hindsight.rollout.weights import WeightSet


class WeightSyncError(RuntimeError):
    """An engine does not have, or does not compute with, the learner's weights. The run must stop."""


@dataclass(frozen=True)
class SyncReport:
    """Duration and result of a weight sync."""

    seconds: float
    logprob_gap: float  # largest over the engines of the mean |log-prob gap| to the learner, nats
    checksum: str  # of the tensors that every engine loaded, as `weights.digest`


@dataclass(frozen=True)
class Canary:
    """A prompt whose log-probs must be those of the learner on every engine."""

    ids: np.ndarray  # (L,) int32
    logprobs: np.ndarray  # (L − 1,) float32, the learner's of ids[1:] under the weights that are sent
    tolerance: float  # largest mean |log-prob gap| that rounding may explain, nats


class Transport(Protocol):
    """A way from the learner to the engines."""

    async def send(
        self, version: int, engines: Sequence[Any], canary: Canary
    ) -> tuple[SyncReport, WeightSet | None]:
        """Load the learner's weights into all engines as `version`, and verify each engine.

        Args:
            engines: handles of `rollout.engine.Engine` actors.

        Returns:
            The weights as well, where others can read them too.

        Raises:
            LearnerError, RemoteError: a rank or an engine is lost for good or missed a deadline.
            EngineError: an engine failed to load.
            WeightSyncError: an engine holds other weights, or computes with others.
        """


async def verify_all(
    engines: Sequence[Any], version: int, checksum: str, canary: Canary, timeout: float
) -> float:
    """`verify` each engine; return the largest gap."""
    checks = (verify(*one, version, checksum, canary, timeout) for one in enumerate(engines))
    return max(await asyncio.gather(*checks), default=0.0)


async def verify(
    index: int, engine: Any, version: int, checksum: str, canary: Canary, timeout: float
) -> float:
    """Check an engine's checksum and canary log-probs; return their mean gap.

    Raises: as `Transport.send`.
    """
    limit: dict[str, Any] = {
        "timeout": timeout,
        "setting": DEADLINE,
        "what": f"verifying weights {version} on engine {index}",
    }
    held, scores = await asyncio.gather(
        call(engine, "fingerprint", **limit), call(engine, "score", canary.ids, **limit)
    )
    check_fingerprint(index, held, version, checksum)
    return check_canary(index, scores, canary.logprobs, canary.tolerance)


def check_fingerprint(index: int, held: tuple[int, set[str]], version: int, checksum: str) -> None:
    """Raises WeightSyncError unless the engine loaded what the learner sent, as that version."""
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


def _short(checksums: set[str]) -> str:
    return " and ".join(sorted(checksum[:12] or "none" for checksum in checksums))
