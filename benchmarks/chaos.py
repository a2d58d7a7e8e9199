"""Kill every kind of process of a small run, again and again: it must end as the run that nobody disturbed.

    python -m benchmarks.chaos [--steps 9] [--kills 1] [--seed 0]

Both runs are `hindsight train nano` without staleness, with two tasks that cannot be trained on
(`benchmarks/poisoned.py`). While the second trains, a process of each role gets SIGKILL at a random moment of
a random step, as often as `--kills` says. The driver gets SIGTERM and SIGKILL, and is started again with
`resume=auto`; after SIGKILL, its newest checkpoint is damaged as well. Another driver is started in the same
folder. Then the two runs must have sampled the same responses in every step and hold the same weights.
In each, every epoch must have trained each sound task exactly once, the poisoned ones must be set aside, no
episode of theirs may have been a reward, and no step may lack an episode or train on nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from benchmarks.poisoned import FAILS, TOO_LONG
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

POISONED = Path(__file__).with_name("poisoned.py")
TASKS, GROUPS, EPISODES = 8, 2, 2  # training tasks; groups of a step; episodes of a group
SETTINGS = [
    # A method that learns from every group: the rewards of an untrained model are all alike.
    *("method=dense", "learner.lr=1e-4"),
    *(f"env.name={POISONED}", f"env.train_tasks={TASKS}"),
    *("env.max_turns=8", "env.slots=4", "sft.demos=8", "sft.epochs=1"),
    *(f"rollout.num_groups={GROUPS}", f"rollout.group_size={EPISODES}", "rollout.max_staleness=0"),
    "evaluate.panels=[evaluation]",  # of which no task is poisoned
    *("evaluate.episodes=2", "evaluate.cold_episodes=0", "checkpoint.every=2"),
    *("teacher.sync_every=1", "teacher.ema_decay=0.5", "cluster.dashboard_port=0", "resume=auto"),
]
ROLES = {  # how Ray and vLLM name the processes
    "engine": "ray::Engine",
    "engine core": "VLLM::EngineCore",
    "worker": "ray::Worker",
    "shard": "ray::Shard",
    "teacher": "ray::TeacherScorer",
    "learner": "ray::PolicyRank",
}
DRIVER = {"driver, SIGTERM": signal.SIGTERM, "driver, SIGKILL": signal.SIGKILL}
KINDS_OF_ENV = ("env_died", "env_error", "env_timeout")
MISSED = "was not there"
PAUSE = 5.0  # seconds after a kill in which its victim is not found again
PATIENCE = 1200.0  # seconds for the rest of a run
Kill = tuple[int, float, str]  # finished steps, seconds later, what is killed


class Training:
    """`hindsight train` as a child process, and its folder."""

    def __init__(self, out: Path, steps: int) -> None:
        self.out = out
        self.command = [sys.executable, "-m", "hindsight", "train", "nano", f"steps={steps}", f"out={out}"]
        self.command += SETTINGS
        self.log = (out.parent / f"{out.name}.log").open("w")
        self.start()

    def start(self) -> None:
        """Start, or resume."""
        self.before = len(self.rows())  # steps of the processes before
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the training steps so far."""
        path = self.out / "metrics.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [row for row in map(json.loads, whole.splitlines()) if row["kind"] == "train"]

    def close(self) -> None:
        """End it at once, if it has not ended; Ray's processes end with it."""
        self.process.kill()
        self.process.wait()

    def wait_for(self, step: int) -> bool:
        """Wait until a step is recorded, and one of this process; False: the run has ended before.

        While vLLM starts its engine core, the loss of that is a failure of its own, which ends the run.
        """
        while self.process.poll() is None:
            if len(self.rows()) > self.before and self.rows()[-1]["step"] >= step:
                return True
            time.sleep(0.1)
        return False

    def kill(self, what: str) -> str:
        """Kill a process; returns what happened."""
        if what in DRIVER:
            began = time.monotonic()
            self.process.send_signal(DRIVER[what])
            status = self.process.wait(timeout=150)
            ended = time.monotonic() - began
            damaged = self.damage() if DRIVER[what] == signal.SIGKILL else ""
            self.start()
            return f"ended with status {status} after {ended:.1f} s{damaged}, started again"
        while self.process.poll() is None:
            if victims := self.processes(ROLES[what]):
                random.choice(victims).kill()
                time.sleep(PAUSE)
                return "killed"
            time.sleep(0.5)  # the run is starting
        return MISSED

    def damage(self) -> str:
        """Cut the newest checkpoint, if there is one before; says so."""
        *older, newest = sorted((self.out / "checkpoints").glob("step-*"))
        if not older:
            return ""
        os.truncate(newest / "driver.json", 100)
        return f", {newest.name} cut"

    def refuses(self) -> bool:
        """Whether another driver in this folder is refused."""
        done = subprocess.run(self.command, capture_output=True, text=True)
        return done.returncode == 1 and "another run is writing" in " ".join(
            done.stdout.split() + done.stderr.split()
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """The run's processes whose command begins so."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if (one.cmdline() or [""])[0].startswith(name):
                    found.append(one)
        return found

    def responses(self) -> dict[str, Any]:
        """By step, the task of each episode and what the student said."""
        files = sorted((self.out / "trajectories").glob("step-*.jsonl"))
        episodes = {file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
        return {
            step: [(one["task"], [turn["response"] for turn in one["turns"]]) for one in own]
            for step, own in episodes.items()
        }

    def set_aside(self) -> dict[str, str]:
        """Kinds of the failures for which tasks were set aside, by task."""
        lines = map(json.loads, (self.out / "failures.jsonl").read_text().splitlines())
        return {line["task"]: line["kind"] for line in lines}

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained model."""
        newest = max((self.out / "checkpoints").glob("step-*"))
        return load_file(newest / "model" / "model.safetensors")


def schedule(steps: int, kills: int, seed: int) -> list[Kill]:
    """When what is killed: everything at least once, in random order, spread over the steps."""
    chosen = [*DRIVER, *list(ROLES) * kills]
    random.Random(seed).shuffle(chosen)
    moments = random.Random(seed + 1)
    return [
        (1 + index * (steps - 1) // len(chosen), moments.uniform(0.0, 2.0), what)
        for index, what in enumerate(chosen)
    ]


def disturb(run: Training, plan: Sequence[Kill], console: Console) -> set[str]:
    """Carry the plan out; returns what was not killed once."""
    spared = {what for *_, what in plan}
    for step, later, what in plan:
        if not run.wait_for(step):
            break
        time.sleep(later)
        done = run.kill(what)
        console.print(f"after step {step}: {what} {done}", highlight=False)
        if done != MISSED:
            spared.discard(what)
    return spared


def faults(run: Training, steps: int) -> list[str]:
    """What a run with poisoned tasks must not have done."""
    found = []
    rows, responses = run.rows(), run.responses()
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        found.append(f"steps {[row['step'] for row in rows]}")
    if any(row["rollout/episodes"] != GROUPS * EPISODES for row in rows):
        found.append("a step without all its episodes")
    if any(not row["learner/samples"] for row in rows):
        found.append("a step that trained on nothing")
    if any(not said for step in responses.values() for _, said in step):
        found.append("an episode without a turn")
    trained = [task for step in sorted(responses) for task, _ in responses[step][::EPISODES]]
    sound = TASKS - 2
    epochs = [trained[start : start + sound] for start in range(0, len(trained), sound)]
    if any(len(set(epoch)) < len(epoch) for epoch in epochs) or len(set(trained)) > sound:
        found.append(f"tasks trained {Counter(trained)}")
    aside = run.set_aside()
    if aside.keys() != {FAILS, TOO_LONG} or aside[TOO_LONG] != "prompt" or aside.keys() & set(trained):
        found.append(f"tasks set aside {aside}")
    failed = {name: rows[-1][f"failures/{name}"] for name in ("total", "prompt", *KINDS_OF_ENV)}
    others = failed["total"] - failed["prompt"] - sum(failed[kind] for kind in KINDS_OF_ENV)
    # A task is set aside after two groups, while a third of it may be under way.
    if others or failed["total"] > 3 * EPISODES:
        found.append(f"failures {failed}")
    return found


def differences(calm: Training, wild: Training) -> list[str]:
    """What tells the two runs apart."""
    found = []
    ours, theirs = wild.responses(), calm.responses()
    found += [f"responses of {step}" for step in theirs if ours.get(step) != theirs[step]]
    one, other = wild.weights(), calm.weights()
    gap = max(float((one[name] - other[name]).abs().max()) for name in other)
    return found + ([f"weights, by up to {gap:.2g}"] if gap else [])


def recovery(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """By role, the mean seconds of a replacement in each step that had one."""
    found = defaultdict(list)
    before: dict[str, float] = {}
    for row in rows:
        for name in [name for name in row if name.startswith("restarts/") and f"{name}_seconds" in row]:
            count = row[name] - before.get(name, 0.0)
            spent = row[f"{name}_seconds"] - before.get(f"{name}_seconds", 0.0)
            if count > 0:
                found[name.removeprefix("restarts/")].append(spent / count)
        before = row if any(name.startswith("restarts/") for name in row) else {}
    return found


def finish(run: Training, console: Console) -> None:
    """Wait for the end of a run; end this program if it fails."""
    status = run.process.wait(timeout=PATIENCE)
    if status:
        console.print(Path(run.log.name).read_text()[-4000:], markup=False, highlight=False)
        raise typer.Exit(1)


def main(
    steps: Annotated[int, typer.Option(help="of each run")] = 9,
    kills: Annotated[int, typer.Option(help="of each role")] = 1,
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
) -> None:
    """Run both, compare, and print how long each role took to recover."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="hindsight-chaos-") as folder:
        with closing(Training(Path(folder, "calm"), steps)) as calm:
            console.print(f"the run that nobody disturbs: {calm.log.name}", highlight=False)
            finish(calm, console)
        with closing(Training(Path(folder, "wild"), steps)) as wild:
            console.print(f"the other one: {wild.log.name}", highlight=False)
            refused = wild.wait_for(1) and wild.refuses()
            spared = disturb(wild, schedule(steps, kills, seed), console)
            finish(wild, console)
        table = Table("role", "steps with a replacement", "seconds", title="Recovery")
        for role, seconds in recovery(wild.rows()).items():
            table.add_row(role, str(len(seconds)), f"{min(seconds):.0f} to {max(seconds):.0f}")
        console.print(table)
        found = differences(calm, wild) + [f"{what} was never killed" for what in sorted(spared)]
        found += [] if refused else ["another driver was not refused"]
        for run in (calm, wild):
            found += [f"{run.out.name}: {fault}" for fault in faults(run, steps)]
    if found:
        console.print("not as it must be: " + "; ".join(found), highlight=False)
        raise typer.Exit(1)
    console.print(
        "the same run: responses, episodes and weights, to the bit; each sound task once an epoch",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
