"""A run as it is now, from the files of its folder: status.json, metrics.jsonl and run.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from hindsight.cluster.report.run_folder import ABOUT, METRICS, PHASES, STATUS, RunFolder, RunFolderError
from hindsight.cluster.report.text import clock, duration, one_line

SILENT = 45.0  # seconds without a new status after which a run counts as dead: it writes one every 10 s
RECENT = 20  # steps whose mean success is shown next to the last one's
MOST_ENGINES = 8  # that have a line each
WIDTH = 62  # columns of a value; with its name, 80


@dataclass
class Now:
    """What the files of a run say. Those that have not changed are not read again."""

    run: RunFolder
    status: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # file -> size and time of change

    def lines(self, now: float) -> list[tuple[str, str]]:
        """What is shown at this time, after reading what has changed; see `status_lines`.

        Raises:
            RunFolderError: a file cannot be read.
        """
        if self._changed(STATUS):
            self.status = read_status(self.run.path / STATUS)
        if self._changed(ABOUT):
            self.about = self.run.about()
        if self._changed(METRICS):
            self.rows = self.run.metrics()
        return status_lines(self.status, self.rows, self.about, now)

    def _changed(self, name: str) -> bool:
        try:
            found = (self.run.path / name).stat()
        except FileNotFoundError:
            return False
        before, self._seen[name] = self._seen.get(name), (found.st_size, found.st_mtime_ns)
        return before != self._seen[name]


def read_status(file: Path) -> dict[str, Any]:
    """What the run wrote last.

    Raises:
        RunFolderError: it is not what a run writes.
    """
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{file} cannot be read: {error}. Delete it; a run writes it again") from error


def state(status: Mapping[str, Any], about: Mapping[str, Any], now: float) -> str:
    """Whether the run is still running, in words."""
    starts = about.get("starts") or [{}]  # its last entry is of the start before, until actors are ready
    outcome = (status or starts[-1]).get("outcome")
    if outcome:
        return f"not running: it {'was ' if outcome == 'stopped' else ''}{outcome}"
    if not status:
        return "not running, or of a version without status.json"
    silent = now - status["time"]
    if silent > SILENT:
        return f"not running: no sign of life for {duration(silent)}, so it was killed or hangs"
    return f"running, process {status.get('process')} on {status.get('host')}"


def status_lines(
    status: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], now: float
) -> list[tuple[str, str]]:
    """What is shown: a name and a value each."""
    shown = [("run", state(status, about, now))]
    alive = bool(status) and shown[0][1].startswith("running")
    at = now if alive else status.get("time", now)  # clocks of a dead run stand still
    if status.get("phase"):
        count = _count(status.get("phase_done"), status.get("phase_total"))
        shown.append(("phase", f"{status['phase']}{count}, for {clock(at - status['phase_since'])}"))
        count = _count(status.get("done"), status.get("total"))
        if status.get("doing") != status["phase"]:
            shown.append(("doing", f"{status['doing']}{count}, for {clock(at - status['since'])}"))
    for what, part in (status.get("starting") or {}).items():
        shown.append(("starting", f"{what}: {part['does']}, for {clock(at - part['since'])}"))
    if status.get("steps"):
        ends = status.get("ends")
        left = f", about {duration(ends - now)} left" if alive and ends else ""
        shown.append(("step", f"{status['step']} of {status['steps']}{left}"))
    if alive and (episodes := status.get("episodes")):
        flying, ended = episodes.get("in_flight", 0), episodes.get("finished", 0)
        shown.append(("episodes", f"{flying} in flight, {ended} finished since the last step"))
    if alive:
        shown += _engines(status.get("engines") or [])
    return shown + _measured(rows)


def _engines(engines: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """A line for each of the first engines, and one for all if there are more."""
    shown = []
    for index, one in enumerate(engines[:MOST_ENGINES]):
        parts = [f"{one['decoding']:.0f} running, {one['waiting']:.0f} waiting"] if one else ["no answer"]
        parts += [f"{one['sampled']:,.0f} tokens/s"] if "sampled" in one else []
        parts += [f"KV cache {one['kv_cache']:.0%}"] if one else []
        parts += [f"prefix hits {one['prefix_hits']:.0%}"] if "prefix_hits" in one else []
        shown.append((f"engine {index}", ", ".join(parts)))
    if len(engines) > MOST_ENGINES:
        sampled = sum(one.get("sampled", 0.0) for one in engines)
        shown.append(("engines", f"{len(engines)}, together {sampled:,.0f} tokens/s"))
    return shown


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What metrics.jsonl says of the last step, the recent ones, and the evaluations."""
    steps = [row for row in rows if row.get("kind") == "train"]
    shown = []
    if steps:
        last = steps[-1]
        recent = [row["rollout/success"] for row in steps[-RECENT:] if row.get("rollout/success") is not None]
        success = f"{sum(recent) / len(recent):.2f} in the last {len(recent)} steps" if recent else "unknown"
        shown += [
            ("success", f"{_figure(last, 'rollout/success', '.2f')} at step {last['step']}, {success}"),
            ("tokens/s", _figure(last, "rollout/tokens_per_second", ",.0f")),
            ("staleness", f"{_figure(last, 'rollout/staleness', '.0f')} weight versions at most"),
            (
                "seconds",
                ", ".join(
                    f"{phase.replace('_', ' ')} {last[f'time/{phase}']:.1f}"
                    for phase in PHASES
                    if (last.get(f"time/{phase}") or 0.0) >= 0.05
                ),
            ),
            ("failures", f"{_figure(last, 'failures/total', '.0f')} so far"),
            ("restarts", _restarts(last)),
        ]
    shown += [
        (
            "evaluation",
            f"step {row['step']}{', ' + row['stage'] if row.get('stage') else ''}: "
            f"success {row['eval/success']:.1%} ({row['eval/low']:.1%} to {row['eval/high']:.1%})",
        )
        for row in [row for row in rows if row.get("kind") == "eval"][-3:]
        if all(row.get(f"eval/{name}") is not None for name in ("success", "low", "high"))
    ]
    return shown


def _count(done: int | None, total: int | None) -> str:
    return "" if total is None else f" {done} of {total}"


def _figure(row: Mapping[str, Any], name: str, form: str) -> str:
    value = row.get(name)
    return "unknown" if value is None else f"{value:{form}}"


def _restarts(row: Mapping[str, Any]) -> str:
    counts = {
        name.removeprefix("restarts/"): value
        for name, value in row.items()
        if name.startswith("restarts/") and not name.endswith("_seconds") and value
    }
    return ", ".join(f"{role} {count:.0f}" for role, count in counts.items()) or "none"


def status_table(shown: Sequence[tuple[str, str]], title: str) -> Table:
    """The lines as a table of at most 80 columns."""
    made = Table(
        box=None, show_header=False, title=one_line(title, WIDTH), title_justify="left", pad_edge=False
    )
    made.add_column("name", style="bold", no_wrap=True)
    made.add_column("value")
    for name, value in shown:
        made.add_row(name, one_line(value, WIDTH) if name != "seconds" else value)
    return made
