"""Seconds from the start of `hindsight train` to the first action, with an empty cache and again.

    python -m benchmarks.start [RECIPE] [--rounds 1] KEY=VALUE…

Cold: a new cache, so the model and the games are made and DeepSpeed and vLLM compile what they compile. Warm:
the same command again. What the machine has read from the disk before stays in memory in both. The run is
ended when an engine has answered for the first time; the time is that in the run's timeline.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.ratio import ratio_line

from hindsight.cluster.report.run_folder import RunFolder

LIMIT = 280.0  # seconds until the first episode is over


def first_action(recipe: str, overrides: Sequence[str], cache: str) -> float:
    """Seconds until an engine answered in one run."""
    with tempfile.TemporaryDirectory(prefix="hindsight-bench-") as folder:
        own = [f"out={folder}/run", "steps=1", "sft.demos=0", "cluster.dashboard_port=0", "env.max_turns=2"]
        command = [sys.executable, "-m", "hindsight", "train", recipe, *own, *overrides]
        began, log = time.time(), Path(folder, "log")
        with log.open("w") as file:
            run = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env={**os.environ, "HINDSIGHT_CACHE": cache},
                start_new_session=True,
            )
        try:
            while run.poll() is None and time.time() < began + LIMIT:
                if answered := answers(Path(folder, "run")):
                    return min(answered) - began
                time.sleep(0.5)
            raise RuntimeError(f"no episode was over within {LIMIT:g} s:\n{log.read_text()[-2000:]}")
        finally:
            if run.poll() is None:
                os.kill(run.pid, signal.SIGTERM)  # it ends its actors, after the step that runs
            run.wait(120.0)


def answers(folder: Path) -> list[float]:
    """When each episode's first turn was answered, in seconds since the epoch."""
    if not (folder / "timeline.jsonl").exists():
        return []
    spans = RunFolder(folder).timeline()
    return [
        one["start"] + one["turns"][0][1] for one in spans if one["role"] == "engine" and one.get("turns")
    ]


def main(
    words: Annotated[list[str] | None, typer.Argument(help="a recipe, and settings as key=value")] = None,
    rounds: int = 1,
) -> None:
    """Print seconds of cold and warm starts."""
    given = words or []
    recipe = next((word for word in given if "=" not in word), "nano")
    overrides = [word for word in given if "=" in word]
    found: dict[str, list[float]] = {"cold start": [], "warm start": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="hindsight-cache-") as cache:
            for own in found.values():
                own.append(first_action(recipe, overrides, cache))
    for name, seconds in found.items():
        print(ratio_line(f"{name}, seconds to the first action", seconds))


if __name__ == "__main__":
    typer.run(main)
