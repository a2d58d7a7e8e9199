"""Figures of the moment: what they are made of, and who is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hindsight.cluster import live
from hindsight.cluster.progress import Progress
from hindsight.cluster.report.definitions import find_definition
from hindsight.cluster.report.top import status_lines
from hindsight.cluster.watch import Stalled, Watchdog
from hindsight.envs.runtime.remote import RemoteTimeout

STATS = {
    **{"decoding": 3, "waiting": 1, "kv_cache": 0.25, "version": 2, "running": 4},
    **{"looked_up_tokens": 100, "found_tokens": 40, "prompt_tokens": 100, "generated_tokens": 10},
}


def later(**more: int) -> dict[str, float]:
    return {**STATS, **{name: STATS[name] + count for name, count in more.items()}}


def test_rates_are_those_since_the_last_look() -> None:
    now = later(looked_up_tokens=200, found_tokens=150, prompt_tokens=200, generated_tokens=50)
    assert live.moment(STATS, now, 5.0) == {
        **{"decoding": 3, "waiting": 1, "kv_cache": 0.25},
        **{"prefix_hits": 0.75, "prefilled": 40.0, "sampled": 10.0},
    }
    assert "prefix_hits" not in live.moment(STATS, STATS, 5.0)  # nothing was looked up


def test_a_new_process_and_one_that_does_not_answer_have_no_rates() -> None:
    first = {"decoding": 3, "waiting": 1, "kv_cache": 0.25}
    assert live.moment(None, STATS, 5.0) == first
    assert live.moment(later(generated_tokens=1), STATS, 5.0) == first
    assert live.moment(STATS, None, 5.0) == {}


def test_every_figure_is_defined() -> None:
    engine = live.moment(STATS, later(looked_up_tokens=1), 5.0)
    found = live.live_metrics([engine, {}], 8, 16)
    assert {name.partition("/")[2].rstrip("_0") for name in found} == {*engine, "in_flight", "finished"}
    assert all(find_definition(name) for name in found)


class Engine:
    """Answers with the next of some figures, the last one again and again."""

    def __init__(self, *answers: dict[str, float] | Exception) -> None:
        self.answers = list(answers)

    async def __call__(self, method: str) -> dict[str, float]:
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run with an engine that is lost and one that continues."""

    async def call(actor: Engine, method: str, timeout: float, setting: str) -> Any:
        watchdog = live.WATCHDOG.get()
        if watchdog is not None:
            watchdog.last = float("inf")  # as its `waiting` would
        return await actor(method)

    monkeypatch.setattr(live, "call", call)
    monkeypatch.setattr(live, "EVERY", 0.01)
    lost = Engine(STATS, RemoteTimeout("gone"))
    told: list[dict[str, float]] = []
    engines = [Engine(STATS, later(generated_tokens=5)), lost]
    return SimpleNamespace(
        actors=SimpleNamespace(engines=engines),
        view=SimpleNamespace(progress=Progress()),
        metrics=SimpleNamespace(now=told.append, told=told),
    )


def test_a_lost_engine_is_left_out_and_nobody_takes_a_look_for_progress(run: SimpleNamespace) -> None:
    watchdog = Watchdog(0.5)
    with pytest.raises(Stalled):
        asyncio.run(watchdog.guard(asyncio.sleep(5), live.report_live(run)))
    first, *_, last = run.metrics.told
    assert first["now/decoding_1"] == 3 and "now/decoding_1" not in last
    assert last["now/sampled_0"] == 0.0 and last["now/decoding_0"] == 3
    status = run.view.progress.status()
    shown = dict(status_lines({**status, "phase": None}, [], {}, status["time"]))
    assert shown["engine 0"] == "3 running, 1 waiting, 0 tokens/s, KV cache 25%"
    assert shown["engine 1"] == "no answer"


def test_many_engines_have_a_line_together() -> None:
    status = {"time": 0.0, "engines": [{"decoding": 1, "waiting": 0, "kv_cache": 0.5, "sampled": 1000.0}] * 9}
    shown = dict(status_lines(status, [], {}, 0.0))
    assert shown["engines"] == "9, together 9,000 tokens/s" and "engine 8" not in shown
