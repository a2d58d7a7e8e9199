"""NCCL and CUDA IPC from learner to engines: vLLM's own code at both ends, without NCCL and CUDA."""

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
from vllm.distributed.weight_transfer import ipc_engine, nccl_common
from vllm.model_executor.model_loader import reload
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from hindsight.configs.schema import Config, Learner, Lora, Rollout, WeightSync
from hindsight.learner.group import LearnerGroup
from hindsight.learner.policy import PolicyRank
from hindsight.learner.rank import LearnerError
from hindsight.learner.senders import GatheredSource
from hindsight.learner.weight_sync import Canary, WeightSyncError
from hindsight.learner.weight_sync_ipc import Ipc
from hindsight.learner.weight_sync_nccl import Nccl
from hindsight.rollout import transfer
from hindsight.rollout.engine import engine_env
from hindsight.rollout.types import EngineError
from hindsight.rollout.weights import meta_of, pack_tensors

CANARY = np.arange(4, dtype=np.int32)
LEARNER = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
CONFIG = Config(
    learner=Learner(ranks=2, zero_stage=1, timeout=60.0),
    rollout=Rollout(engines=2, tensor_parallel=2),
    weight_sync=WeightSync(transport="nccl"),
)
PICKLES = "VLLM_ALLOW_INSECURE_SERIALIZATION"
WORLD = 5  # rank 0 of the learner, and two engines of two workers


class Group:
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
    """`rollout.engine.Engine` with a stand-in for the model: each worker has the real transfer engine."""

    def __init__(self, kind=transfer.NcclTransfer, receive=None, workers=CONFIG.rollout.tensor_parallel):
        self.received = [{} for _ in range(workers)]
        self.workers = [self.worker(kind, rank, held) for rank, held in enumerate(self.received)]
        self.version = 0
        if receive:
            self.receive_update = receive

    def worker(self, kind, rank, held):
        parallel = SimpleNamespace(data_parallel_index=0, world_size=len(self.received), rank=rank)
        vllm = SimpleNamespace(parallel_config=parallel, model_config=None)

        def load(weights):
            new = {name: tensor.clone() for name, tensor in weights}
            held.update(new)
            return set(new)

        parameters = tiny_llama().named_parameters
        model = SimpleNamespace(load_weights=load, named_parameters=parameters, modules=lambda: [])
        return kind(None, vllm, torch.device("cpu", 0), model)

    def on_workers(self, do):
        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(do, self.workers))

    def init_transfer(self, info):
        self.on_workers(lambda worker: worker.init_transfer_engine(worker.parse_init_info(info)))

    def start_update(self):
        for held, worker in zip(self.received, self.workers, strict=True):
            held.clear()
            worker.start_weight_update()

    def receive_update(self, info):
        self.on_workers(lambda worker: worker.receive_weights(worker.parse_update_info(info)))

    def finish_update(self, version):
        self.on_workers(lambda worker: worker.finish_weight_update())
        self.version = version

    def fingerprint(self):
        return self.version, {worker.checksum for worker in self.workers}

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
    group = Group()
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", group.join)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(reload, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(reload, "finalize_layerwise_reload", lambda *_: None)
    return group


def policy_rank(rank=0, config=CONFIG, **model):
    """A rank with a model and without DeepSpeed."""
    made = PolicyRank(config, "toy", rank)
    made._wrap(tiny_llama(**model))
    made.address = lambda: ("learner", 1234)
    return made


def learner(config=CONFIG):
    group = LearnerGroup(config, "toy")
    group.ranks = [Handle(policy_rank(rank, config)) for rank in range(config.learner.ranks)]
    return group


async def send(transport, engines, version=5):
    report, weights = await transport.send(version, engines, Canary(CANARY, LEARNER, 0.25))
    assert weights is None
    return report


def test_every_worker_holds_what_rank_0_trained(nccl):
    trained, engines = learner(), [Handle(FakeEngine()), Handle(FakeEngine())]
    weights = trained.ranks[0].actor.weights
    transport = Nccl(trained)

    async def twice():
        first = await send(transport, engines, version=5)
        with torch.no_grad():
            weights["model.norm.weight"].add_(1.0)
        return first, await send(transport, engines, version=6)

    first, report = asyncio.run(twice())
    assert report.logprob_gap == 0.0 and report.checksum != first.checksum
    assert report.checksum == pack_tensors(weights.items()).checksum
    assert sorted(nccl.members) == list(range(WORLD))
    assert [handle.calls for handle in trained.ranks] == [
        ["address", "join", "send", "send"],
        ["join", "send", "send"],
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
            await send(Nccl(learner()), [Handle(FakeEngine()), Handle(FakeEngine(receive=fail))])
        assert not nccl.all.broken  # rank 0 waits on, as inside NCCL
        nccl.all.abort()

    asyncio.run(check())


def test_an_engine_that_never_joins_is_a_missed_deadline(nccl):
    group = learner()
    group.config = replace(CONFIG, learner=replace(CONFIG.learner, timeout=0.2))

    async def check():
        stuck = Handle(FakeEngine())
        stuck.actor.init_transfer = lambda info: None
        with pytest.raises(LearnerError, match=r"join took longer .* increase learner\.timeout"):
            await send(Nccl(group), [Handle(FakeEngine()), stuck])
        nccl.all.abort()

    asyncio.run(check())


def test_a_tensor_that_arrives_with_another_bit_is_refused(nccl):
    class Flipping(transfer.NcclTransfer):
        def receive_weights(self, update_info):
            def flip(tensor, src, stream, whole=self.model_update_group.broadcast):
                whole(tensor, src, stream)
                if tensor.ndim == 1:
                    tensor.view(torch.uint8)[0] ^= 1

            group = self.model_update_group
            self.model_update_group = SimpleNamespace(broadcast=flip)
            super().receive_weights(update_info)
            self.model_update_group = group

    with pytest.raises(WeightSyncError, match="engine 1 loaded weights 5 with checksum"):
        asyncio.run(send(Nccl(learner()), [Handle(FakeEngine()), Handle(FakeEngine(Flipping))]))


def test_an_engine_that_gets_too_few_tensors_is_refused(nccl):
    trained = learner()
    for rank in trained.ranks:
        del rank.actor.weights["model.norm.weight"]
        rank.actor.layout = tuple(one for one in rank.actor.layout if one.name != "model.norm.weight")
    with pytest.raises(ValueError, match=r"lack 1 of the engine's parameters: \['model.norm.weight'\]"):
        asyncio.run(send(Nccl(trained), [Handle(FakeEngine()), Handle(FakeEngine())]))


def test_shared_memory_is_loaded_and_summed_as_it_is(nccl, monkeypatch):
    monkeypatch.setattr(transfer, "initialize_layerwise_reload", lambda model: None)
    monkeypatch.setattr(transfer, "finalize_layerwise_reload", lambda *_: None)
    rank, engine = policy_rank(), FakeEngine(transfer.SegmentTransfer)
    sent = rank.export(1, copied=False)
    engine.start_update()
    engine.receive_update(transfer.update_info(sent.segment, sent.layout))
    engine.finish_update(1)
    assert engine.fingerprint() == (1, {sent.checksum})
    for received in engine.received:
        assert all(torch.equal(received[name], weight) for name, weight in rank.weights.items())
    engine.start_update()
    assert engine.fingerprint() == (1, {""})
    with pytest.raises(ValueError, match="synced weights lack"):
        engine.finish_update(2)


ONE_GPU = replace(
    CONFIG,
    learner=replace(CONFIG.learner, ranks=1),
    rollout=Rollout(),
    weight_sync=WeightSync(transport="ipc"),
)


@pytest.fixture
def ipc(nccl, monkeypatch):
    """What of CUDA vLLM's two ends touch: a handle is an index into what has been shared."""
    shared = []

    def share(tensor):
        shared.append(tensor)
        handle = b"handle %d" % (len(shared) - 1)
        own = (torch.Tensor, tensor.size(), tensor.stride(), 0, torch.UntypedStorage, tensor.dtype, 7)
        return None, (*own, handle, tensor.nbytes, 0, False, b"counter", 0, b"event", True)

    def open_shared(*arguments):
        assert arguments[0] is torch.Tensor and arguments[6] == 0  # the receiver's own number of the GPU
        return shared[int(arguments[7].split()[1])]

    monkeypatch.setattr(ipc_engine, "reduce_tensor", share)
    monkeypatch.setattr(ipc_engine, "rebuild_cuda_tensor", open_shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="GPU-1"))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    return shared


def test_an_engine_on_the_same_gpu_opens_the_learners_memory(ipc):
    trained, engine = learner(ONE_GPU), Handle(FakeEngine(transfer.IpcTransfer, workers=1))
    weights, transport = trained.ranks[0].actor.weights, Ipc(trained)

    async def twice():
        await send(transport, [engine], version=5)
        with torch.no_grad():
            weights["model.norm.weight"].add_(1.0)
        return await send(transport, [engine], version=6)

    report = asyncio.run(twice())
    assert report.checksum == pack_tensors(weights.items()).checksum
    assert [one.data_ptr() for one in ipc[: len(weights)]] == [one.data_ptr() for one in weights.values()]
    assert trained.ranks[0].calls == ["join", "send", "send"]
    update = ["start_update", "receive_update", "finish_update", "fingerprint", "score"]
    assert engine.calls == ["init_transfer", *update, *update] and engine.actor.version == 6
    [received] = engine.actor.received
    assert all(torch.equal(received[name], weights[name]) for name in weights)


def test_memory_that_changes_before_the_engine_loads_it_is_refused(ipc):
    trained = learner(ONE_GPU)
    engine = FakeEngine(transfer.IpcTransfer, workers=1)
    receive = engine.receive_update

    def late(info):
        with torch.no_grad():
            trained.ranks[0].actor.weights["model.norm.weight"].add_(1.0)
        receive(info)

    engine.receive_update = late
    with pytest.raises(WeightSyncError, match="engine 0 loaded weights 5 with checksum"):
        asyncio.run(send(Ipc(trained), [Handle(engine)]))


def test_handles_pass_to_vllms_own_processes(ipc, monkeypatch):
    """They are Python objects: vLLM's encoding takes them only with the variable that an engine sets."""
    rank = policy_rank(config=ONE_GPU)
    rank.join({"packed": False})
    update, _ = rank.send()
    env = engine_env(ONE_GPU)
    assert PICKLES not in engine_env(CONFIG)
    with pytest.raises(TypeError):
        MsgpackEncoder().encode(update)
    monkeypatch.setenv(PICKLES, env[PICKLES])
    sent = MsgpackDecoder(dict).decode(MsgpackEncoder().encode(update))
    assert sent["names"] == list(rank.weights)
    arrived, handle = sent["ipc_handles"][0]["GPU-1"], update["ipc_handles"][0]["GPU-1"]
    plain = [list(one) if isinstance(one, torch.Size | tuple) else one for one in handle]
    assert [list(one) if isinstance(one, tuple) else one for one in arrived] == plain


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_source_gives_what_an_export_packs(tied, dtype, tmp_path):
    rank = policy_rank(tied=tied, dtype=dtype)
    source = GatheredSource(rank.layout, rank._parameters, borrowed=False)
    exported, layout, _ = pack_tensors(rank._parameters(), rank.layout)
    sent, sent_layout, _ = pack_tensors(source)
    assert sent_layout == layout and np.array_equal(sent, exported)
    assert [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source
    ]
    tiny_llama(tied=tied, dtype=dtype).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as checkpoint:
        assert set(checkpoint.keys()) == {meta.name for meta in source.metadata()}


def test_a_borrowed_parameter_is_copied():
    weight = torch.ones(4)

    def read():
        yield "w", weight
        weight.zero_()  # as ZeRO-3 frees it

    source = GatheredSource((meta_of("w", weight),), read, borrowed=True)
    assert [tensor.sum() for _, tensor in list(source)] == [4]


@pytest.mark.parametrize(
    ("transport", "rank", "broadcasts"),
    [("nccl", 0, True), ("nccl", 8, False), ("ipc", 0, True), ("ipc", 8, False), ("object_store", 0, False)],
)
def test_an_adapter_goes_by_the_object_store(transport, rank, broadcasts):
    config = Config(learner=Learner(lora=Lora(rank=rank)), weight_sync=WeightSync(transport=transport))
    assert config.broadcasts is broadcasts
