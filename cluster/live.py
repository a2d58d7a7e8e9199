"""Figures of the moment, every few seconds: on Ray's endpoint, and in status.json for `hindsight top`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hindsight.cluster.run import Run
from hindsight.envs.runtime.remote import WATCHDOG, RemoteError, call

EVERY = 5.0  # seconds
Stats = Mapping[str, float]  # of an engine (`Engine.stats`)


async def report_live(run: Run) -> None:
    """Tell display and trackers of the engines and the episodes in flight, until canceled.

    Raises:
        TrackerError: a tracker failed.
    """
    WATCHDOG.set(None)  # that an engine tells its figures is no progress of the run
    before: list[Stats | None] = [None] * len(run.actors.engines)
    at = time.monotonic()
    while True:
        await asyncio.sleep(EVERY)
        now = await asyncio.gather(*map(_stats, run.actors.engines))
        seconds, at = time.monotonic() - at, time.monotonic()
        engines = [moment(*pair, seconds) for pair in zip(before, now, strict=True)]
        run.view.progress.engines = engines
        progress = run.view.progress
        run.metrics.now(live_metrics(engines, progress.in_flight, progress.finished))
        before = now


async def _stats(engine: Any) -> Stats | None:
    """An engine's figures; None while its process is replaced (`heal.keep` tells of that)."""
    try:
        found: Stats = await call(engine, "stats", timeout=EVERY, setting="cluster.start_timeout")
    except RemoteError:
        return None
    return found


def moment(before: Stats | None, now: Stats | None, seconds: float) -> dict[str, float]:
    """What an engine does now, and its rates since it was last asked; {} if it does not answer."""
    if now is None:
        return {}
    found = {name: now[name] for name in ("decoding", "waiting", "kv_cache")}
    if before is None or now["generated_tokens"] < before["generated_tokens"]:  # a new process counts from 0
        return found
    new = {name: now[name] - before[name] for name in before}
    if new["looked_up_tokens"]:
        found["prefix_hits"] = new["found_tokens"] / new["looked_up_tokens"]
    found["prefilled"], found["sampled"] = new["prompt_tokens"] / seconds, new["generated_tokens"] / seconds
    return found


def live_metrics(engines: Sequence[Stats], in_flight: int, finished: int) -> dict[str, float]:
    """The metrics of the moment, by their full names."""
    found = {"now/in_flight": float(in_flight), "now/finished": float(finished)}
    for index, engine in enumerate(engines):
        names = {
            "decoding": f"now/decoding_{index}",
            "waiting": f"now/waiting_{index}",
            "kv_cache": f"now/kv_cache_{index}",
            "prefix_hits": f"now/prefix_hits_{index}",
            "prefilled": f"now/prefilled_{index}",
            "sampled": f"now/sampled_{index}",
        }
        found |= {name: float(engine[own]) for own, name in names.items() if own in engine}
    return found
