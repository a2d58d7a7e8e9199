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
from hindsight.learner import weight_sync
from hindsight.learner.weight_sync import SyncReport
from hindsight.rollout.weights import WeightSet


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked, in order; `sync_weights` and `broadcast` are those of learner.weight_sync."""
    calls: list[str] = []

    def way(name: str) -> Any:
        async def go(*_: Any, **__: Any) -> SyncReport:
            calls.append(name)
            return SyncReport(0.0, 0.0, "")

        return go

    monkeypatch.setattr(publish, "sync_weights", way("sync_weights"))
    monkeypatch.setattr(publish, "broadcast", way("broadcast"))
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
        learner=SimpleNamespace(score=method("score", np.zeros(3, np.float32)), **exports),
        scorers=lambda: {name: SimpleNamespace(load_weights=method(name)) for name in scorers},
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
        (NCCL, {}, BOTH, True, ["broadcast"]),
        (NCCL, DUE, BOTH, True, ["broadcast", "export", "teacher"]),
        (NCCL, EVERYWHERE, BOTH, True, ["broadcast", "export", "teacher", "reference", "critic"]),
        (NCCL, EVERYWHERE, (), True, ["broadcast", "export", "critic"]),
        (NCCL, EVERYWHERE, (), False, ["broadcast"]),
        (NCCL, DUE, ("reference",), True, ["broadcast"]),
        (STORE, {}, BOTH, True, ["export", "sync_weights"]),
        (STORE, EARLY, BOTH, True, ["export", "sync_weights"]),
        (FROZEN, DUE, BOTH, True, ["export", "sync_weights"]),
        (STORE, DUE, BOTH, True, ["export", "sync_weights", "teacher"]),
        (ADAPTER, DUE, BOTH, True, ["export", "sync_weights", "export_average", "teacher"]),
        (ADAPTER, EVERYWHERE, (), True, ["export", "sync_weights", "export_merged", "critic"]),
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
    made.actors.learner.export = lambda version: asyncio.sleep(0.0, WeightSet(version, (), "a" * 64, None))
    watchdog = Watchdog(config.cluster.stall_timeout)
    late = r"loading weights 1 on engine 0 took longer than 0\.8 s: raise learner\.timeout"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RemoteTimeout, match=late):
        patch.setattr(publish, "sync_weights", weight_sync.sync_weights)
        asyncio.run(watchdog.guard(made.publisher.sync()))
