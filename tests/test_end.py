"""How a run ends after SIGTERM and SIGKILL, and what it listens on until then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hindsight.cluster.signals import CLOSING, GRACE
from hindsight.configs.paths import SOURCE
from hindsight.envs.runtime.linux import die_with_parent

MARK = "HINDSIGHT_TEST_RUN"  # every process of a run inherits it
START = 400.0  # seconds until a run trains, on a busy machine
SMALL = (
    "method=grpo env.max_turns=4 env.slots=2 env.train_tasks=4 env.eval_tasks=2 sft.demos=0 "
    "rollout.num_groups=1 rollout.group_size=2 evaluate.episodes=1 evaluate.cold_episodes=0 "
    "checkpoint.every=100 cluster.dashboard_port=0"
)


class Process:
    """A run of its own, and all that it starts."""

    def __init__(self, out: Path, *settings: str) -> None:
        self.out, self.mark = out, f"{out}-{time.time_ns()}"
        self.log = (out.parent / f"log-{time.time_ns()}").open("w+")
        command = [
            sys.executable,
            "-m",
            "hindsight",
            "train",
            "nano",
            f"out={out}",
            *SMALL.split(),
            *settings,
        ]
        env = os.environ | {MARK: self.mark, "PYTHONPATH": SOURCE}
        self.main = subprocess.Popen(
            command, env=env, stdout=self.log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )

    def processes(self) -> list[psutil.Process]:
        """The living processes of the run."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # gone, or not ours
                continue
        return found

    def until(self, happened: Callable[[], Any], seconds: float) -> None:
        """Wait for something."""
        end = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)

    def steps(self) -> list[int]:
        """Training steps in metrics.jsonl."""
        file = self.out / "metrics.jsonl"
        rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [row["step"] for row in rows if row["kind"] == "train"]

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        return max(int(folder.name[-8:]) for folder in (self.out / "checkpoints").glob("step-*"))

    def said(self) -> str:
        """What it has written, as one line: the terminal's width breaks it anywhere."""
        return " ".join(Path(self.log.name).read_text().split())


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    """Two runs in one folder: the first was sent SIGTERM after step 2, the second resumes it."""
    out = tmp_path_factory.mktemp("end") / "run"
    first = Process(out, "steps=500")
    second = None
    try:
        first.until(lambda: first.steps()[-1:] >= [2], START)
        first.main.send_signal(signal.SIGTERM)
        first.main.wait(GRACE + CLOSING)
        second = Process(out, "steps=500", "resume=auto")
        second.until(lambda: first.saved() < second.steps()[-1], START)
        yield first, second
    finally:
        for one in filter(None, (first, second)):
            one.main.kill()
            one.main.wait(60)


def test_sigterm_saves_the_last_step_and_leaves_no_process(own_ray: tuple[Process, Process]) -> None:
    first, second = own_ray
    assert first.main.returncode == 128 + signal.SIGTERM, first.said()
    assert first.processes() == []
    assert "stopped by SIGTERM; the same command with resume=auto continues" in first.said()
    assert first.saved() >= 2
    assert f"after step {first.saved()} of 500" in second.said()
    steps = second.steps()
    assert steps == list(range(1, len(steps) + 1))  # none is lost or trained twice


def test_a_local_run_listens_on_the_loopback_interface_only(own_ray: tuple[Process, Process]) -> None:
    listening = {
        (process.name(), socket.laddr.ip.removeprefix("::ffff:"))
        for process in own_ray[1].processes()
        for socket in process.net_connections("tcp")
        if socket.status == psutil.CONN_LISTEN
    }
    assert {"raylet", "ray::PolicyRank"} <= {name for name, _ in listening}
    assert {(name, address) for name, address in listening if address != "127.0.0.1"} == set()


def test_a_killed_driver_leaves_no_process(own_ray: tuple[Process, Process]) -> None:
    run = own_ray[1]
    names = {process.name() for process in run.processes()}
    assert {"raylet", "ray::Engine", "VLLM::EngineCore", "ray::Shard", "ray::PolicyRank"} <= names
    run.main.kill()
    run.until(lambda: not run.processes(), 30)
