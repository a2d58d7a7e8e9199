"""What a weight sync accepts and what it refuses, with engines that answer as told."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from learner_toys import tiny_llama
from ray.exceptions import ActorUnavailableError, RayActorError

from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import ActorLost, RemoteTimeout
from hindsight.learner.policy import PolicyRank
from hindsight.learner.weight_sync import Canary, WeightSyncError
from hindsight.learner.weight_sync_store import sync_weights
from hindsight.rollout.segment import attach
from hindsight.rollout.types import EngineError
from hindsight.rollout.weights import WeightSet, unpack_tensors

CANARY = np.arange(4, dtype=np.int32)
LEARNER = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
WEIGHTS = WeightSet(version=5, layout=(), checksum="a" * 64, data=None)


class Method:
    def __init__(self, answer):
        self.answer = answer

    async def remote(self, *_):
        answer = self.answer() if callable(self.answer) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return await answer if asyncio.iscoroutine(answer) else answer


class FakeEngine:
    """Answers like the handle of an engine actor that loaded WEIGHTS."""

    def __init__(self, load=None, version=5, checksums=frozenset({"a" * 64}), score=LEARNER):
        self.load_weights = Method(load)
        self.fingerprint = Method((version, set(checksums)))
        self.score = Method(score)


def run(*engines, tolerance=0.25, timeout=5.0):
    return asyncio.run(sync_weights(engines, WEIGHTS, Canary(CANARY, LEARNER, tolerance), timeout, 5.0))


def test_reports_the_largest_gap():
    report = run(FakeEngine(), FakeEngine(score=LEARNER + np.float32(0.1)))
    assert report.logprob_gap == pytest.approx(0.1, abs=1e-6)
    assert report.checksum == WEIGHTS.checksum
    assert report.seconds >= 0


@pytest.mark.parametrize(
    "held",
    [
        {"checksums": {"b" * 64}},
        {"checksums": {"a" * 64, "b" * 64}},  # one of two workers
        {"checksums": {""}},  # never loaded any
        {"version": 4},
    ],
)
def test_other_bytes_or_another_version_are_refused(held):
    with pytest.raises(WeightSyncError, match=r"^engine 1 loaded weights .*published weights 5.*a{12}"):
        run(FakeEngine(), FakeEngine(**held))


def test_a_canary_gap_names_engine_and_both_figures():
    with pytest.raises(
        WeightSyncError, match=r"^engine 1 .* off by 0\.3000 .*engine -1\.7000, learner -2\.0000"
    ):
        run(FakeEngine(), FakeEngine(score=LEARNER + np.float32(0.3)))


def test_gaps_of_opposite_sign_do_not_cancel():
    with pytest.raises(WeightSyncError, match=r"off by 0\.6667"):
        run(FakeEngine(score=LEARNER + np.array([1.0, -1.0, 0.0], dtype=np.float32)))


def test_a_canary_that_is_not_a_number_is_refused():
    with pytest.raises(WeightSyncError, match="off by nan"):
        run(FakeEngine(score=LEARNER * np.float32("nan")))


def test_the_error_of_a_failed_load_comes_through():
    with pytest.raises(EngineError, match="engine 0"):
        run(FakeEngine(load=EngineError("engine 0: receiving weights failed")), FakeEngine())


def test_an_engine_that_does_not_answer_ends_in_an_error():
    late = r"^loading weights 5 on engine 1 took longer than 0\.05 s; .* increase learner\.timeout"
    with pytest.raises(RemoteTimeout, match=late):
        run(FakeEngine(), FakeEngine(load=lambda: asyncio.sleep(60)), timeout=0.05)
    with pytest.raises(ActorLost, match=r"^verifying weights 5 on engine 0: the actor has died.*resume=auto"):
        run(FakeEngine(score=RayActorError()))


def test_an_engine_that_is_replaced_meanwhile_gets_the_weights():
    lost = [ActorUnavailableError("away", None)]
    sound, broken = FakeEngine(), FakeEngine(load=lambda: lost.pop() if lost else None)
    broken.ready = Method(None)
    assert run(sound, broken).logprob_gap == 0.0 and not lost
    lost = [ActorUnavailableError("away", None)]
    between = FakeEngine(score=lambda: lost.pop() if lost else LEARNER)
    loads = []
    between.load_weights, between.ready = Method(lambda: loads.append(1)), Method(None)
    run(between)
    assert len(loads) == 2  # the process that was verified is the one that loaded


def test_engines_load_at_the_same_time():
    async def both():
        barrier = asyncio.Barrier(2)
        engines = [FakeEngine(load=barrier.wait) for _ in range(2)]
        return await sync_weights(engines, WEIGHTS, Canary(CANARY, LEARNER, 0.25), 5.0, 5.0)

    assert asyncio.run(both()).logprob_gap == 0.0


def test_shared_memory_is_written_again_unless_somebody_keeps_it():
    rank = PolicyRank(Config(), "toy", 0)
    rank._wrap(tiny_llama())

    def export(version, kept=()):
        made = rank.export(version, kept, False)
        assert made.data is None
        return made

    def weights(sent):
        return dict(unpack_tensors(attach(sent.segment), sent.layout))

    first = export(1)
    assert all(torch.equal(weights(first)[name], one) for name, one in rank.weights.items())
    again = export(2)
    assert again.segment == first.segment and again.checksum == first.checksum
    before = rank.weights["model.norm.weight"].detach().clone()
    with torch.no_grad():
        rank.weights["model.norm.weight"].add_(1.0)
    third = export(3, kept={2})
    assert third.segment != first.segment and third.checksum != first.checksum
    assert torch.equal(weights(again)["model.norm.weight"], before)
    assert export(3, kept={2, 3}).segment == third.segment  # for an engine that was replaced
    assert export(4, kept={3}).segment == first.segment and len(rank.segments) == 2
