"""The plan's memory estimate against what a run without GPUs really takes: peak resident memory of each role.

    python -m benchmarks.memory alfworld steps=1 sft.demos=8

The run is `hindsight train RECIPE KEY=VALUE…` in a temporary folder. Its actors are found by the names that
Ray gives their processes; each process's peak (VmHWM) is read until it ends. An engine's core is a process of
its own, and is added to its actor's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hindsight.cluster.machines import this_machine
from hindsight.cluster.planning import plan_run
from hindsight.configs.load import load_config

ROLES = {
    "ray::Engine": "engine",
    "VLLM::EngineCo": "engine",
    "ray::PolicyRank": "learner",
    "ray::CriticRank": "critic",
    "ray::TeacherSco": "teacher",
}


def peaks(parent: int, found: dict[int, tuple[str, float]]) -> None:
    """Note the role and peak memory (GiB) of each process of the run."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            started = status.with_name("stat").read_text().rpartition(")")[2].split()[19]
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = lines["Name"].strip()
        role = next((role for start, role in ROLES.items() if name.startswith(start[:15])), None)
        if role and "VmHWM" in lines and int(started) >= parent:
            found[int(lines["Pid"])] = role, int(lines["VmHWM"].split()[0]) / 2**20


def main(
    recipe: Annotated[str, typer.Argument(help="a recipe without GPUs")],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value")] = None,
) -> None:
    """Print the estimate, the peak and their ratio for each role."""
    config = load_config(recipe, overrides or [])
    made = plan_run(config, [this_machine()], config.model.path)
    found: dict[int, tuple[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hindsight-bench-") as folder:
        command = [
            sys.executable,
            "-m",
            "hindsight",
            "train",
            recipe,
            *(overrides or []),
            f"out={folder}/run",
        ]
        command += ["cluster.gpus=none", "cluster.dashboard_port=0"]
        with open(f"{folder}/log", "w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
            began = int(Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[19])
            while run.poll() is None:
                peaks(began, found)
                time.sleep(0.5)
            log.seek(0)
            if run.returncode:
                raise RuntimeError(f"the run failed:\n{log.read()[-2000:]}")
    taken: defaultdict[str, float] = defaultdict(float)
    for role, peak in found.values():
        taken[role] += peak
    table = Table(title=" ".join([recipe, *(overrides or [])]))
    for heading in ("role", "estimate (GiB)", "peak (GiB)", "estimate ÷ peak"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    for role in dict.fromkeys(place.role for place in made.places):
        estimate, peak = sum(place.need.total for place in made.of(role)), taken[role]
        table.add_row(role, f"{estimate:.1f}", f"{peak:.1f}", f"{estimate / peak:.2f}" if peak else "-")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
