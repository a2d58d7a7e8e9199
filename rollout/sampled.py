"""What an engine sampled, checked before anybody trains on it. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from hindsight.rollout.types import EngineError, Generation

FINISHED = ("stop", "length")  # vLLM's other reasons are failures: abort, error, repetition


def to_generation(output: Any, most: int, vocabulary: int) -> Generation:
    """Convert a finished request of vLLM that asked for the log-prob of each sampled token and no others.

    Args:
        output: a `RequestOutput` with flat log-probs.
        most: the number of tokens that may have been sampled.
        vocabulary: the number of the model's tokens.

    Raises:
        EngineError: the request did not finish, an id is not in the vocabulary, a log-prob is not finite, or
            the number of ids or log-probs is wrong.
    """
    sampled = output.outputs[0]
    if sampled.finish_reason not in FINISHED:
        raise EngineError(f"the request ended with {sampled.finish_reason!r} instead of a response")
    ids = np.asarray(sampled.token_ids, dtype=np.int64)
    logprobs = np.asarray(sampled.logprobs.logprobs if sampled.logprobs else (), dtype=np.float32)
    if len(ids) > most or ids.shape != logprobs.shape:
        raise EngineError(
            f"{len(ids)} tokens and {len(logprobs)} log-probs; expected as many, at most {most}"
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        raise EngineError(f"token ids {ids.min()} to {ids.max()}; the model has {vocabulary} tokens")
    if not np.isfinite(logprobs).all():
        at = int(np.argmin(np.isfinite(logprobs)))
        raise EngineError(
            f"the log-prob of sampled token {at} is {logprobs[at]}: weights or kernels are broken"
        )
    versions = token_versions(output)
    if versions.shape != ids.shape:
        raise EngineError("the response does not say which weights sampled each token")
    return Generation(ids.astype(np.int32), logprobs, sampled.finish_reason, versions)


def token_versions(output: Any) -> np.ndarray:
    """(n,) int32, the weight version that sampled each token of a finished request."""
    sampled = output.outputs[0]
    if output.lora_request:
        return np.full(len(sampled.token_ids), output.lora_request.lora_int_id, dtype=np.int32)
    spans = sampled.weight_versions
    versions = np.array([int(span.version) for span in spans], dtype=np.int32)
    return versions.repeat([span.end - span.start for span in spans])
