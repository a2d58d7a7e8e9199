"""Record the runs of `hindsight view --demo`, and cut them to a few episodes each.

    python -m benchmarks.demo [--methods serl,grpo,hero,hint_sd] [--runs runs/demo]

All start from the same warm start. Methods that ask a judge get one of rules (`benchmarks.demo_judge`).
Several minutes each on two cores; a run whose folder has a finished run in it is only cut again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.demo_judge import served

from hindsight.cluster.report.lines import read_rows, write_rows
from hindsight.cluster.report.run_folder import EPISODES, METRICS, TIMELINE, TOKENS, RunFolder
from hindsight.cluster.report.viewing import DEMO
from hindsight.learner.checkpoint import latest

COMMON = ("steps=2", "rollout.group_size=8", "cluster.dashboard_port=0")
JUDGED = ("hero", "hint_sd")
GROUPS = 2  # of each step that are kept: those with the most different outcomes
HELD_OUT = 2  # episodes of each evaluation that are kept
SFT_EVERY = 10  # updates of the warm start; the others are left out of its curve
KEY = "HINDSIGHT_DEMO_KEY"


def hindsight(*arguments: str) -> None:
    """Run a command of Hindsight."""
    subprocess.run(
        [sys.executable, "-m", "hindsight", *arguments], check=True, env={**os.environ, KEY: "none"}
    )


def record(method: str, runs: Path) -> Path:
    """Train with a method from the warm start, unless that was done; return its folder."""
    warm, out = runs / "warm", runs / method
    if latest(warm / "checkpoints") is None:
        hindsight("sft", "nano", f"out={warm}", *COMMON)
    checkpoint = latest(warm / "checkpoints")
    assert checkpoint is not None
    model = checkpoint / "model"
    if not (out / "curve.png").exists():
        own = [
            f"method={method}",
            f"out={out}",
            f"model.path={model}",
            "sft.demos=0",
            "evaluate.cold_episodes=64",
        ]
        with served() as url:
            if method in JUDGED:
                own += [
                    f"judge.url={url}",
                    "judge.source=endpoint",
                    "judge.model=rules",
                    f"judge.api_key_env={KEY}",
                ]
            hindsight("train", "nano", *own, *COMMON)
    return out


def mixed(group: list[dict[str, Any]]) -> tuple[bool, int]:
    """How much a group shows: both outcomes, and many turns that a judge spoke of."""
    notes = sum(1 for episode in group for turn in episode["turns"] if turn.get("notes"))
    return len({episode["success"] for episode in group}) > 1, notes


def cut(source: Path, to: Path) -> None:
    """Copy what the demo shows of a run."""
    shutil.rmtree(to, ignore_errors=True)
    run = RunFolder(source)
    for stage in run.steps():
        rows = run.episodes(stage.key)
        if stage.training:
            groups: dict[int, list[dict[str, Any]]] = {}
            for row in rows:
                groups.setdefault(row["group"], []).append(row)
            kept = sorted(sorted(groups, key=lambda one: mixed(groups[one]), reverse=True)[:GROUPS])
            rows = [row for group in kept for row in groups[group]]
            held = run.tokens(stage.key)
            turns = [turn for row in rows for turn in held[row["episode"]].values()]
            write_rows(to / TOKENS / f"{stage.key}.jsonl.gz", turns)
        else:
            rows = rows[:HELD_OUT]
        write_rows(to / EPISODES / f"{stage.key}.jsonl", rows)
    metrics = [row for row in run.metrics() if row["kind"] != "sft" or row["step"] % SFT_EVERY == 1]
    write_rows(to / METRICS, metrics)
    write_rows(to / TIMELINE, (row for row in read_rows(source / TIMELINE) if "stage" not in row))
    text = (source / "config.yaml").read_text().replace(f"{Path.cwd()}/", "")
    (to / "config.yaml").write_text(re.sub(r"(?m)^( *url:) '?http\S*", r"\1 ''", text))
    about = json.loads((source / "run.json").read_text())
    for start in about["starts"]:
        start |= {"host": "demo", "commit": None, "dirty": False}
        start["command"] = re.sub(r" judge\.url=\S+", "", start["command"])
    (to / "run.json").write_text(json.dumps(about, indent=1) + "\n")


def main(
    methods: Annotated[str, typer.Option(help="of the demo")] = "serl,grpo,hero,hint_sd",
    runs: Annotated[Path, typer.Option(help="folder of the whole runs")] = Path("runs/demo"),
) -> None:
    """Record and cut the demo's runs."""
    for method in methods.split(","):
        cut(record(method, runs), DEMO / method)


if __name__ == "__main__":
    typer.run(main)
