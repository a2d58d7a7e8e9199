"""What an engine may answer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hindsight.rollout.sampled import to_generation
from hindsight.rollout.types import EngineError

SPANS = (("3", 0, 1), ("4", 1, 3))


def output(ids=(5, 9, 1), logprobs=(-0.5, -1.0, -0.1), finish="stop", versions=SPANS, adapter=None):
    """As vLLM's `RequestOutput`."""
    sampled = SimpleNamespace(
        token_ids=list(ids),
        logprobs=None if logprobs is None else SimpleNamespace(logprobs=list(logprobs)),
        finish_reason=finish,
        weight_versions=[SimpleNamespace(version=v, start=start, end=end) for v, start, end in versions],
    )
    lora = SimpleNamespace(lora_int_id=adapter) if adapter else None
    return SimpleNamespace(outputs=[sampled], lora_request=lora)


def test_a_response_is_converted():
    found = to_generation(output(), 3, 10)
    assert (found.ids.tolist(), found.ids.dtype) == ([5, 9, 1], np.int32)
    assert found.logprobs.dtype == np.float32 and np.allclose(found.logprobs, [-0.5, -1.0, -0.1])
    assert (found.finish, found.versions.tolist()) == ("stop", [3, 4, 4])
    assert to_generation(output(adapter=7, finish="length"), 3, 10).versions.tolist() == [7, 7, 7]
    assert len(to_generation(output((), None, versions=()), 3, 10).ids) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"finish": "abort"}, "ended with 'abort'"),
        ({"finish": None}, "ended with None"),
        ({"ids": (5, 9, 1, 2), "logprobs": (-1.0,) * 4}, "at most 3"),
        ({"logprobs": (-0.5, -1.0)}, "3 tokens and 2 log-probs"),
        ({"logprobs": None}, "3 tokens and 0 log-probs"),
        ({"ids": (5, 10, 1)}, "token ids 1 to 10; the model has 10 tokens"),
        ({"ids": (5, -1, 1)}, "token ids -1 to 5"),
        ({"logprobs": (-0.5, float("nan"), -0.1)}, "log-prob of sampled token 1 is nan"),
        ({"logprobs": (-0.5, -0.1, -float("inf"))}, "log-prob of sampled token 2 is -inf"),
        ({"versions": ()}, "which weights"),
        ({"versions": (("3", 0, 2),)}, "which weights"),
    ],
)
def test_an_unusable_response_is_an_engine_failure(changes, said):
    with pytest.raises(EngineError, match=said):
        to_generation(output(**changes), 3, 10)
