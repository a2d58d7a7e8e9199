"""Which way new weights go, and who gets a copy, with actors that write down what they were asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hindsight.cluster import publish
from hindsight.cluster.train import Trainer
from hindsight.cluster.turns import Turns
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Cluster, Config, Learner, Lora, Teacher, WeightSync
from hindsight.envs.runtime.remote import RemoteTimeout
from hindsight.learner import weight_sync_store
from hindsight.learner.weight_sync import SyncReport
from hindsight.learner.weight_sync_ipc import Ipc
from hindsight.learner.weight_sync_nccl import Nccl
from hindsight.rollout.segment import SegmentUnreachable
from hindsight.rollout.weights import WeightSet

SYNC_WEIGHTS = weight_sync_store.sync_weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked, in order; no engine is."""
    calls: list[str] = []

    def way(name: str) -> Any:
        async def go(*_: Any, **__: Any) -> Any:
            calls.append(name)
            report = SyncReport(0.0, 0.0, "")
            return report if name == "shared" else (report, None)

        return go

    monkeypatch.setattr(weight_sync_store, "sync_weights", way("shared"))
    monkeypatch.setattr(Nccl, "send", way("nccl"))
    monkeypatch.setattr(Ipc, "send", way("ipc"))
    monkeypatch.setattr(publish, "several_nodes", lambda: False)
    return calls


def trainer(asked: list[str], config: Config, *, scorers: tuple[str, ...], critic: bool) -> Trainer:
    def method(name: str, answer: Any = None) -> Any:
        async def call(*_: Any, **__: Any) -> Any:
            asked.append(name)
            return answer

        return call

    names = ("export", "export_merged", "export_average")
    exports = {name: method(name, answer=name) for name in names}
    actors = SimpleNamespace(
        engines=[],
        learner=SimpleNamespace(score=method("score", np.zeros(3, np.float32)), config=config, **exports),
        scorers=lambda: {name: SimpleNamespace(load_weights=method(name), kept=None) for name in scorers},
        turns=Turns(),
        critic=SimpleNamespace(load_weights=method("critic")) if critic else None,
    )
    run: Any = SimpleNamespace(
        config=config,
        actors=actors,
        canary=np.arange(4),
        now=lambda *_: None,
        state=SimpleNamespace(version=0),
    )
    return Trainer(run)


BOTH = ("teacher", "reference")
SYNCS = Teacher(sync_every=2)
DUE, EARLY, EVERYWHERE = {"step": 4}, {"step": 3}, {"everywhere": True}
IPC = Config(weight_sync=WeightSync(transport="ipc"), teacher=SYNCS)
NCCL = Config(weight_sync=WeightSync(transport="nccl"), teacher=SYNCS)
STORE = Config(teacher=SYNCS)
FROZEN = Config(teacher=Teacher(sync_every=0))
ADAPTER = Config(
    learner=Learner(lora=Lora(rank=8)),
    weight_sync=WeightSync(transport="nccl"),
    teacher=Teacher(sync_every=2, ema_decay=0.5),
)


@pytest.mark.parametrize(
    ("config", "to", "scorers", "critic", "expected"),
    [
        (NCCL, {}, BOTH, True, ["nccl"]),
        (NCCL, DUE, BOTH, True, ["nccl", "export", "teacher"]),
        (NCCL, EVERYWHERE, BOTH, True, ["nccl", "export", "teacher", "reference", "critic"]),
        (NCCL, EVERYWHERE, (), True, ["nccl", "export", "critic"]),
        (NCCL, EVERYWHERE, (), False, ["nccl"]),
        (NCCL, DUE, ("reference",), True, ["nccl"]),
        (IPC, {}, BOTH, True, ["ipc"]),
        (IPC, DUE, BOTH, True, ["ipc", "export", "teacher"]),
        (STORE, {}, BOTH, True, ["export", "shared"]),
        (STORE, EARLY, BOTH, True, ["export", "shared"]),
        (FROZEN, DUE, BOTH, True, ["export", "shared"]),
        (STORE, DUE, BOTH, True, ["export", "shared", "teacher"]),
        (ADAPTER, DUE, BOTH, True, ["export", "shared", "export_average", "teacher"]),
        (ADAPTER, EVERYWHERE, (), True, ["export", "shared", "export_merged", "critic"]),
    ],
)
def test_weights_are_exported_only_for_those_who_need_them(
    asked: list[str],
    config: Config,
    to: dict[str, Any],
    scorers: tuple[str, ...],
    critic: bool,
    expected: list[str],
) -> None:
    made = trainer(asked, config, scorers=scorers, critic=critic)
    asyncio.run(made.publisher.sync(**to))
    assert asked == ["score", *expected]
    assert made.run.state.version == 1


def test_a_slow_weight_sync_is_a_missed_deadline_that_names_its_setting(asked: list[str]) -> None:
    """It may take longer than a run may stand still."""
    config = Config(learner=Learner(timeout=0.8), cluster=Cluster(stall_timeout=0.2))
    made = trainer(asked, config, scorers=(), critic=False)

    async def never(*_: Any) -> None:
        await asyncio.sleep(60)

    made.actors.engines.append(SimpleNamespace(load_weights=SimpleNamespace(remote=never)))
    made.actors.learner.export = lambda version, *_: asyncio.sleep(0.0, WeightSet(version, (), "a" * 64))
    watchdog = Watchdog(config.cluster.stall_timeout)
    late = r"loading weights 1 on engine 0 took longer than 0\.8 s; .* increase learner\.timeout"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RemoteTimeout, match=late):
        patch.setattr(weight_sync_store, "sync_weights", SYNC_WEIGHTS)
        asyncio.run(watchdog.guard(made.publisher.sync()))


def test_the_learner_is_told_whose_weights_stay_and_who_is_elsewhere(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    several = iter([False, True])
    monkeypatch.setattr(publish, "several_nodes", lambda: next(several))
    made, exports = trainer(asked, STORE, scorers=BOTH, critic=False), list[Any]()
    pools = {"teacher": SimpleNamespace(kept=3), "reference": SimpleNamespace(kept=None)}
    made.actors.scorers = lambda: pools  # type: ignore[assignment,return-value]

    async def export(version: int, kept: set[int], copied: bool) -> WeightSet:
        exports.append((version, kept, copied))
        return WeightSet(version, (), "a" * 64)

    made.actors.learner.export = export  # type: ignore[union-attr,assignment]
    asyncio.run(made.publisher.sync())
    asyncio.run(made.publisher.sync())
    assert exports == [(1, {3}, False), (2, {3}, True)]


def test_engines_that_cannot_map_get_a_copy_from_then_on(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, exports = trainer(asked, STORE, scorers=(), critic=False), list[Any]()

    async def export(version: int, kept: set[int], copied: bool) -> WeightSet:
        exports.append((version, copied))
        return WeightSet(version, (), "a" * 64, *["reference"] * copied)  # type: ignore[arg-type]

    async def load(engines: Any, weights: WeightSet, *_: Any) -> SyncReport:
        if weights.data is None:
            raise SegmentUnreachable("/proc/1/fd/2 cannot be opened")
        return SyncReport(0.0, 0.0, "")

    made.actors.learner.export = export  # type: ignore[union-attr,assignment]
    monkeypatch.setattr(weight_sync_store, "sync_weights", load)
    asyncio.run(made.publisher.sync())
    asyncio.run(made.publisher.sync())
    assert exports == [(1, False), (1, True), (2, True)]
    assert caplog.text.count("weights go through the object store from now on: /proc/1/fd/2") == 1
