"""A run's timeline in Chrome's trace event format, which https://ui.perfetto.dev and chrome://tracing open.

A process of the trace is a role, a thread of it one of several that worked at once:

    driver          steps, and within them what the driver waited for; evaluations; checkpoints
    workers         groups in flight
    environments    slots; within an episode, the environment's work and the waits for the engine
    engine 0, …     the requests that it had at once
    judge, teacher, reference, critic, learner, weight sync

Spans of a thread contain one another or do not overlap, as the format demands.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hindsight.cluster.report.lines import Row
from hindsight.cluster.report.run_folder import PHASES, RunFolder, RunFolderError
from hindsight.envs.runtime.files import atomic_write

TRACE = "trace"  # the name of the file in the run's folder, without its ending
DRIVER, WORKERS, ENVIRONMENTS = "driver", "workers", "environments"
ORDER = (
    *(DRIVER, WORKERS, ENVIRONMENTS, "engine", "judge", "teacher", "reference", "critic", "learner"),
    "weight sync",
)
SHORT = 0.001  # seconds of a wait that is left out
OF_DRIVER = {"evaluation": "evaluations", "checkpoint": "checkpoints"}  # role -> thread


@dataclass
class Slice:
    """Something that took time, in seconds since the epoch."""

    process: str
    thread: str  # those that overlap get threads of the same name with a number
    name: str
    start: float
    end: float
    about: Row = field(default_factory=dict)
    inside: list[Slice] = field(
        default_factory=list
    )  # one after another; their process and thread are its own


@dataclass(frozen=True)
class Instant:
    """Something that happened, in seconds since the epoch."""

    thread: str  # of the driver
    name: str
    at: float
    about: Row


def write_trace(run: RunFolder, step: int | None = None, file: Path | None = None) -> tuple[Path, int]:
    """Write the trace of a step, or of the whole run.

    Args:
        file: where to; by default `trace.json`, or `trace-step-000003.json`, in the run's folder.

    Returns:
        The file, and its number of events.

    Raises:
        RunFolderError: nothing was recorded of the step, or a file cannot be read or written.
    """
    recorded = run.timeline()
    spans = [row for row in recorded if step is None or row["step"] == step]
    if not spans:
        known = sorted({row["step"] for row in recorded})
        has = f"it has steps {known[0]} to {known[-1]}" if known else "it has no timeline"
        raise RunFolderError(
            f"{run.path} has no spans of {'a step' if step is None else f'step {step}'}: {has}"
        )
    rows = [row for row in run.metrics("train") if step is None or row["step"] == step]
    within = (-math.inf, math.inf) if step is None else (spans[0]["start"], max(row["end"] for row in spans))
    instants = [one for one in _instants(run, recorded) if within[0] <= one.at <= within[1]]
    found = events([*_slices(spans), *_steps(rows)], instants)
    file = file or run.path / (f"{TRACE}.json" if step is None else f"{TRACE}-step-{step:06d}.json")
    document = {"traceEvents": found, "displayTimeUnit": "ms", "otherData": {"run": run.path.name}}
    try:
        atomic_write(file, json.dumps(document, separators=(",", ":")) + "\n")
    except OSError as error:
        raise RunFolderError(f"{file} cannot be written: {error}. Name another file with --out") from error
    return file, len(found)


def events(slices: Sequence[Slice], instants: Sequence[Instant] = ()) -> list[Row]:
    """The events of a trace, its metadata first. Times are whole microseconds from the first one."""
    first = min([*(one.start for one in slices), *(one.at for one in instants)], default=0.0)
    threads: dict[tuple[str, str], list[Slice]] = {}
    lanes: dict[tuple[str, str], Lanes] = {}
    for one in sorted(slices, key=lambda one: (one.start, -one.end)):
        lane = lanes.setdefault((one.process, one.thread), Lanes()).take(one.start, one.end)
        thread = one.thread if lane == 1 else f"{one.thread} ({lane})"
        threads.setdefault((one.process, thread), []).append(one)
    threads |= {(DRIVER, one.thread): [] for one in instants if (DRIVER, one.thread) not in threads}
    names = sorted({process for process, _ in threads}, key=_rank)
    pids = {name: pid for pid, name in enumerate(names, start=1)}
    tids = {
        key: tid
        for tid, key in enumerate(sorted(threads, key=lambda key: (_rank(key[0]), _natural(key[1]))), 1)
    }
    made = [_named("process", pid, 0, name) for name, pid in pids.items()]
    made += [_named("thread", pids[key[0]], tid, key[1]) for key, tid in tids.items()]
    for key, own in threads.items():
        for one in own:
            made += _complete(one, pids[key[0]], tids[key], first)
    for instant in instants:
        place = {"pid": pids[DRIVER], "tid": tids[DRIVER, instant.thread], "ts": _micro(instant.at - first)}
        made.append(
            {"ph": "i", "s": "p", "name": instant.name, "cat": DRIVER, **place, "args": instant.about}
        )
    return made


class Lanes:
    """Numbers, from 1, spans that come by their start: those with the same number do not overlap."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._busy: list[tuple[float, int]] = []  # by their end

    def take(self, start: float, end: float) -> int:
        """The smallest number that is free from `start` on."""
        while self._busy and self._busy[0][0] <= start:
            heapq.heappush(self._free, heapq.heappop(self._busy)[1])
        lane = heapq.heappop(self._free) if self._free else len(self._busy) + 1
        heapq.heappush(self._busy, (end, lane))
        return lane


def _complete(one: Slice, pid: int, tid: int, first: float) -> Iterator[Row]:
    """A slice and those inside it, which are cut to it."""

    def event(part: Slice, start: int, end: int) -> Row:
        place = {"pid": pid, "tid": tid, "ts": start, "dur": end - start}
        return {"ph": "X", "name": part.name, "cat": one.process, **place, "args": part.about}

    start, end = _micro(one.start - first), _micro(one.end - first)
    yield event(one, start, end)
    for part in one.inside:
        begun = min(max(_micro(part.start - first), start), end)
        start = min(max(_micro(part.end - first), begun), end)  # the next begins no earlier
        yield event(part, begun, start)


def _slices(spans: Iterable[Row]) -> Iterator[Slice]:
    """Slices of the rows of timeline.jsonl."""
    for row in spans:
        role, name, start, end = row["role"], row["name"], row["start"], row["end"]
        about = {"step": row["step"]}
        if role == "engine":
            yield from _episode(row, about)
        elif role in OF_DRIVER:
            yield Slice(DRIVER, OF_DRIVER[role], name, start, end, about)
        elif role == "rollout":
            yield Slice(WORKERS, "groups", name, start, end, about)
        else:
            process = role.replace("_", " ")
            yield Slice(process, process, name, start, end, about)


def _episode(row: Row, about: Row) -> Iterator[Slice]:
    """An episode in its slot, and its turns on the engine."""
    engine, start = row["name"], row["start"]
    name = f"group {row['group']}" if "group" in row else "evaluation"
    shard, slot = row["slot"]
    inside, since = [], start
    for turn, (asked, answered) in enumerate(row["turns"], start=1):
        own = {**about, "turn": turn}
        inside.append(Slice("", "", "environment", since, start + asked, own))
        inside.append(Slice("", "", f"waits for {engine}", start + asked, start + answered, own))
        yield Slice(engine, "requests", f"{name}, turn {turn}", start + asked, start + answered, own)
        since = start + answered
    inside.append(Slice("", "", "environment", since, row["end"], about))
    place = f"slot {slot}" if not shard else f"shard {shard}, slot {slot}"
    yield Slice(ENVIRONMENTS, place, name, start, row["end"], about, inside)


def _steps(rows: Iterable[Row]) -> Iterator[Slice]:
    """The steps of the rows of metrics.jsonl, each with the parts that the driver waited for."""
    for row in rows:
        if (seconds := row.get("time/step")) is None or row.get("time") is None:
            continue
        since = start = row["time"] - seconds  # the row was written as the step ended
        figures: Row = {name: row.get(name) for name in ("rollout/success", "learner/loss") if name in row}
        inside = []
        for phase in PHASES:
            took = row.get(f"time/{phase}") or 0.0
            if took >= SHORT:
                inside.append(Slice("", "", f"waits for {phase.replace('_', ' ')}", since, since + took))
            since += took
        yield Slice(DRIVER, "steps", f"step {row['step']}", start, row["time"], figures, inside)


def _instants(run: RunFolder, spans: Iterable[Row]) -> Iterator[Instant]:
    """Tasks that were set aside, checkpoints, starts and ends of the run."""
    found = [
        (row.get("time"), "failures", f"task set aside: {row.get('kind')}", row) for row in run.failures()
    ]
    for start in run.about().get("starts", []):
        command = {"command": start.get("command")}
        found.append((start.get("started"), "run", "run started", command))
        found.append((start.get("ended"), "run", f"run {start.get('outcome')}", command))
    for time, thread, name, about in found:
        if time:
            yield Instant(thread, name, datetime.fromisoformat(time).timestamp(), about)
    for row in spans:
        if row["role"] == "checkpoint" and row["name"] == "save":  # a copy in memory is not saved yet
            yield Instant(OF_DRIVER["checkpoint"], f"step {row['step']} is saved", row["end"], {})


def _named(kind: str, pid: int, tid: int, name: str) -> Row:
    return {"ph": "M", "name": f"{kind}_name", "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _rank(process: str) -> tuple[int, list[Any]]:
    role = "engine" if process.startswith("engine ") else process
    return ORDER.index(role) if role in ORDER else len(ORDER), _natural(process)


def _natural(name: str) -> list[Any]:
    """A key that sorts "slot 10" after "slot 9"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(" ")]


def _micro(seconds: float) -> int:
    return round(1e6 * seconds)
