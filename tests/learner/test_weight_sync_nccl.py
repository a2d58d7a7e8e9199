"""The NCCL way from learner to engines: vLLM's own code at both ends, and threads in the place of NCCL."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learner_toys import tiny_llama
from ray.exceptions import RayTaskError
from safetensors import safe_open
from vllm.distributed.weight_transfer import nccl_common
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from hindsight.configs.schema import Config, Learner, Lora, Rollout, WeightSync
from hindsight.learner.group import LearnerGroup
from hindsight.learner.policy import PolicyRank
from hindsight.learner.rank import LearnerError
from hindsight.learner.weight_sync import Canary, WeightSyncError, broadcast
from hindsight.learner.weight_sync_nccl import GatheredSource
from hindsight.rollout.types import EngineError
from hindsight.rollout.weights import pack

CANARY = np.arange(4, dtype=np.int32)
LEARNER = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
CONFIG = Config(
    learner=Learner(ranks=2, zero_stage=1, timeout=60.0),
    rollout=Rollout(engines=2, tensor_parallel=2),
    weight_sync=WeightSync(transport="nccl"),
)
WORLD = 5  # rank 0 of the learner, and two engines of two workers


class Nccl:
    """A group whose members are threads: as in NCCL, nobody joins or passes a broadcast before all came."""

    def __init__(self):
        self.all = threading.Barrier(WORLD, timeout=60)
        self.members = []
        self.sent = None

    def join(self, address, port, rank, world, device):
        assert (address, port, world) == ("learner", 1234, WORLD)
        self.members.append(rank)
        self.all.wait()
        return SimpleNamespace(broadcast=lambda tensor, src, stream: self.broadcast(tensor, rank == src))

    def broadcast(self, tensor, sends):
        if sends:
            self.sent = tensor
        self.all.wait()
        if not sends:
            tensor.copy_(self.sent)
        self.all.wait()


class FakeEngine:
    """`rollout.engine.Engine` without a model: in each worker is vLLM's own transfer engine."""

    def __init__(self, checksum="", receive=None):
        self.received = [{} for _ in range(CONFIG.rollout.tensor_parallel)]
        self.workers = [self.worker(rank, held) for rank, held in enumerate(self.received)]
        self.version, self.checksum = 0, checksum
        if receive:
            self.receive_update = receive

    @staticmethod
    def worker(rank, held):
        parallel = SimpleNamespace(
            data_parallel_index=0, world_size=CONFIG.rollout.tensor_parallel, rank=rank
        )
        vllm = SimpleNamespace(parallel_config=parallel, model_config=None)
        model = SimpleNamespace(load_weights=held.update)
        return NCCLWeightTransferEngine(None, vllm, torch.device("cpu"), model)

    def on_workers(self, do):
        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(do, self.workers))

    def init_transfer(self, info):
        self.on_workers(lambda worker: worker.init_transfer_engine(worker.parse_init_info(info)))

    def start_update(self):
        for held in self.received:
            held.clear()

    def receive_update(self, info):
        self.on_workers(lambda worker: worker.receive_weights(worker.parse_update_info(info)))

    def finish_update(self, version):
        self.version = version

    def fingerprint(self):
        return self.version, {self.checksum}

    def score(self, ids):
        return LEARNER


class Handle:
    """Of an actor that is a thread of this process; `calls` are those that were made."""

    def __init__(self, actor):
        self.actor, self.calls = actor, []

    def __getattr__(self, name):
        def remote(*args):
            self.calls.append(name)
            return asyncio.to_thread(getattr(self.actor, name), *args)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def nccl(monkeypatch):
    """What of NCCL and CUDA vLLM's two ends touch."""
    group = Nccl()
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", group.join)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    return group


def policy_rank(rank=0, **model):
    """A rank with a model and without DeepSpeed."""
    made = PolicyRank(CONFIG, "toy", rank)
    made._wrap(tiny_llama(**model))
    made.address = lambda: ("learner", 1234)
    return made


def learner():
    group = LearnerGroup(CONFIG, "toy")
    group.ranks = [Handle(policy_rank(rank)) for rank in range(CONFIG.learner.ranks)]
    return group


def send(learner, engines, version=5):
    return broadcast(engines, learner, version, Canary(CANARY, LEARNER, 0.25), 60.0)


def test_every_worker_holds_what_rank_0_trained(nccl):
    trained, engines = learner(), [Handle(FakeEngine()), Handle(FakeEngine())]
    weights = trained.ranks[0].actor.weights

    async def twice():
        await send(trained, engines, version=5)
        with torch.no_grad():
            weights["model.norm.weight"].add_(1.0)
        return await send(trained, engines, version=6)

    report = asyncio.run(twice())
    assert (report.logprob_gap, report.checksum) == (0.0, "")
    assert sorted(nccl.members) == list(range(WORLD))
    assert [handle.calls for handle in trained.ranks] == [
        ["address", "join", "broadcast", "broadcast"],
        ["join", "broadcast", "broadcast"],
    ]
    update = ["start_update", "receive_update", "finish_update", "fingerprint", "score"]
    for handle in engines:
        assert handle.calls == ["init_transfer", *update, *update]
        assert handle.actor.version == 6
        for received in handle.actor.received:
            assert list(received) == list(weights)
            assert all(torch.equal(received[name], weights[name]) for name in weights)


def test_an_engine_that_fails_ends_the_broadcast_at_once(nccl):
    def fail(info):
        failed = EngineError("engine 1: receiving weights failed: out of memory")
        raise RayTaskError("receive_update", "trace", failed).as_instanceof_cause()

    async def check():
        with pytest.raises(EngineError, match=r"^engine 1: receiving weights failed: out of memory$"):
            await send(learner(), [Handle(FakeEngine()), Handle(FakeEngine(receive=fail))])
        assert not nccl.all.broken  # rank 0 waits on, as inside NCCL
        nccl.all.abort()

    asyncio.run(check())


def test_an_engine_that_never_joins_is_a_missed_deadline(nccl):
    group = learner()
    group.config = replace(CONFIG, learner=replace(CONFIG.learner, timeout=0.2))

    async def check():
        stuck = Handle(FakeEngine())
        stuck.actor.init_transfer = lambda info: None
        with pytest.raises(LearnerError, match=r"join took longer .* raise learner\.timeout"):
            await send(group, [Handle(FakeEngine()), stuck])
        nccl.all.abort()

    asyncio.run(check())


def test_an_engine_that_holds_anything_from_the_object_store_is_refused(nccl):
    with pytest.raises(WeightSyncError, match="engine 1 loaded weights 5 with checksum aaaa"):
        asyncio.run(send(learner(), [Handle(FakeEngine()), Handle(FakeEngine(checksum="a" * 64))]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_source_gives_what_an_export_packs(tied, dtype, tmp_path):
    rank = policy_rank(tied=tied, dtype=dtype)
    source = GatheredSource(rank.weights)
    exported, layout = pack(rank._parameters(), rank.layout)
    sent, sent_layout = pack(source)
    assert sent_layout == layout and np.array_equal(sent, exported)
    assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source
    ]
    tiny_llama(tied=tied, dtype=dtype).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as checkpoint:
        assert set(checkpoint.keys()) == {meta.name for meta in source.metadata()}


def test_a_parameter_in_shares_has_its_whole_shape():
    share = torch.nn.Parameter(torch.empty(0))
    share.ds_shape = torch.Size([8, 4])
    assert GatheredSource({"w": share}).metadata()[0].shape == (8, 4)


@pytest.mark.parametrize(
    ("transport", "rank", "broadcasts"),
    [("nccl", 0, True), ("nccl", 8, False), ("object_store", 0, False)],
)
def test_an_adapter_goes_by_the_object_store(transport, rank, broadcasts):
    config = Config(learner=Learner(lora=Lora(rank=rank)), weight_sync=WeightSync(transport=transport))
    assert config.broadcasts is broadcasts
