"""What the driver, a worker and environment shards cost, with engines and a learner that only wait.

    python -m benchmarks.driver [--episodes 16,96,1000] [--steps 4] [--seconds 1.0]
    python -m benchmarks.driver --episodes 16 --steps 1000 --seconds 0 --turns 4   # does anything grow?

The run is real (GRPO, the loop of `hindsight train`, worker, shards and their processes, checkpoints), but
an engine answers each turn after `--seconds` with the same tokens, and the learner does nothing. Every
episode has a slot, so all are in flight at once. A table has the groups per second, for each process its
share of one core and its CPU time per turn, and how memory, open files, the machine's shared memory and the
entries of $TMPDIR changed over the run. The last lines have the groups per second as a share of what these
engines allow (an episode in `--turns` × `--seconds`), and how much of one core the driver would need at that
rate.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import ray
import typer
from benchmarks.ratio import ratio_line
from benchmarks.toy import ACTIONS
from rich.console import Console
from rich.table import Table

import hindsight.cluster.run
from hindsight.cluster.machines import connect
from hindsight.cluster.plan import Plan
from hindsight.cluster.run import open_run
from hindsight.cluster.start import Actors, reserve, variables
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.envs.base import EnvFamily
from hindsight.envs.runtime.pool import start_pool
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.render import load_renderer
from hindsight.rollout.types import Generation, Sampling
from hindsight.rollout.weights import WeightSet
from hindsight.rollout.worker import Worker

TOY = Path(__file__).with_name("toy.py")
GROUP = 8  # episodes


class WaitingEngine:
    """Answers every request with the same tokens, some time later."""

    def __init__(self, ids: np.ndarray, seconds: float) -> None:
        self.ids, self.seconds, self.version, self.checksum = ids, seconds, 0, ""

    async def ready(self) -> None:
        """Answer."""

    async def watch(self) -> None:
        """Never return."""
        await asyncio.Event().wait()

    async def serves(self) -> bool:
        """As `Engine.serves`."""
        return True

    async def generate(self, ids: np.ndarray, sampling: Sampling, seconds: float) -> Generation:
        """As `Engine.generate`."""
        await asyncio.sleep(self.seconds)
        versions = np.full(len(self.ids), self.version, np.int32)
        return Generation(self.ids, np.full(len(self.ids), -0.5, np.float32), "stop", versions)

    async def load_weights(self, weights: WeightSet) -> None:
        """As `Engine.load_weights`."""
        self.version, self.checksum = weights.version, weights.checksum

    async def fingerprint(self) -> tuple[int, set[str]]:
        """As `Engine.fingerprint`."""
        return self.version, {self.checksum}

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """As `Engine.score`."""
        return np.zeros(len(ids) - 1, np.float32)


class NoLearner:
    """A learner without a model."""

    checkpoint_bytes = 0
    ranks = ()

    def __init__(self, config: Config) -> None:
        self.config = config

    async def update(self, samples: dict[str, Sequence[TrainingSample]], *_: float) -> dict[str, float]:
        """As `RankGroup.update`."""
        return {"samples": float(sum(map(len, samples.values())))}

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """As `LearnerGroup.score`."""
        return np.zeros(len(ids) - 1, np.float32)

    async def export(self, version: int, *_: Any) -> WeightSet:
        """As `LearnerGroup.export`."""
        return WeightSet(version, (), "none", ray.put(np.zeros(0, np.uint8)))

    async def save(self, folder: Path) -> None:
        """As `RankGroup.save`."""
        (folder / "learner").mkdir()

    async def save_model(self, folder: Path) -> None:
        """As `LearnerGroup.save_model`."""
        folder.mkdir()

    def stop(self) -> None:
        """As `RankGroup.stop`."""


def starter(seconds: float) -> Any:
    """What takes the place of `start_actors`."""

    async def start(plan: Plan, model: str, family: EnvFamily, *_: Any) -> Actors:
        config, renderer = plan.config, load_renderer(model, plan.config)
        place = {"num_cpus": 0, "max_concurrency": 4096, **variables({}, gpus=0)}
        engine = ray.remote(WaitingEngine).options(**place).remote(renderer.respond(ACTIONS[0]), seconds)
        environments = start_pool(config, family)
        await environments.ready(config.cluster.start_timeout)
        worker = ray.remote(Worker).options(**place).remote(model, config, [engine], environments.shards)
        learner: Any = NoLearner(config)
        return Actors([engine], worker, environments, learner, None, None, None, None, await reserve(plan))

    return start


def settings(out: Path, episodes: int, steps: int, turns: int) -> Config:
    """A run of steps with that many episodes."""
    return load_config(
        "nano",
        [
            *(
                "method=grpo",
                f"env.name={TOY}",
                "env.kinds=[]",
                "sft.demos=0",
                f"out={out}",
                f"steps={steps}",
            ),
            *(f"rollout.num_groups={episodes // GROUP}", f"rollout.group_size={GROUP}"),
            *("env.shards=1", f"env.slots={episodes}"),
            *(f"env.max_turns={turns}", "model.max_length=8192", "learner.micro_batch_tokens=8192"),
            *("evaluate.episodes=1", "evaluate.cold_episodes=0", f"checkpoint.every={max(1, steps // 10)}"),
        ],
    )


class Process:
    """A process of the run: its use of cores, memory and files."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.process = name, psutil.Process(pid)
        self.cpu = list[float]()
        self.memory, self.files = list[float](), list[int]()

    @property
    def used(self) -> float:
        """CPU seconds between the first and the last note."""
        return self.cpu[-1] - self.cpu[0]

    def note(self) -> None:
        """Note where it stands."""
        used = self.process.cpu_times()
        self.cpu.append(used.user + used.system)
        self.memory.append(self.process.memory_info().rss / 2**20)
        self.files.append(self.process.num_fds())


class Watched(Trainer):
    """The trainer, noting where every process stands after each step."""

    async def begin(self) -> None:
        """Find the processes."""
        actors = self.actors
        named = [("worker", actors.worker), ("engine", actors.engines[0])]
        named += [("shard", shard) for shard in actors.environments.shards]
        pids = [await one.__ray_call__.remote(lambda _: os.getpid()) for _, one in named]
        self.processes = [Process("driver", os.getpid())]
        self.processes += [Process(name, pid) for (name, _), pid in zip(named, pids, strict=True)]
        self.times, self.shared, self.temporary = list[float](), list[float](), list[int]()

    async def checkpoint_and_evaluate(self) -> None:
        """Between two steps."""
        self.times.append(asyncio.get_running_loop().time())
        self.shared.append(psutil.disk_usage("/dev/shm").used / 2**20)
        self.temporary.append(len(os.listdir(tempfile.gettempdir())))
        for process in self.processes:
            process.note()
        await super().checkpoint_and_evaluate()


async def measure(config: Config) -> Watched:
    """Run and return what was noted."""
    async with open_run(config, View()) as run:
        trainer = Watched(run)
        await trainer.begin()
        await run.watchdog.guard(trainer.train(), trainer.publisher.keep())
        return trainer


def change(values: Sequence[float]) -> str:
    """At the start, in the middle and at the end: what grows without end does so in both halves."""
    tenth, middle = max(1, len(values) // 10), len(values) // 2
    parts = values[:tenth], values[middle : middle + tenth], values[-tenth:]
    return " → ".join(f"{statistics.median(part):.0f}" for part in parts)


def main(
    episodes: Annotated[str, typer.Option(help="in flight, comma-separated")] = "16,96,1000",
    steps: Annotated[int, typer.Option(help="of each run; the first is not timed")] = 4,
    seconds: Annotated[float, typer.Option(help="that an engine takes for a turn")] = 1.0,
    turns: Annotated[int, typer.Option(help="of an episode")] = 20,
) -> None:
    """Print a table for each number of episodes."""
    hindsight.cluster.run.start_actors = starter(seconds)
    console, counts = Console(), [int(count) for count in episodes.split(",")]
    with tempfile.TemporaryDirectory(prefix="hindsight-driver-") as folder:
        configs = [settings(Path(folder, str(count)), count, steps + 1, turns) for count in counts]
        connect(None, dashboard_port=0)  # actors find the environment that the settings name
        found, needed = {}, {}
        for count, config in zip(counts, configs, strict=True):
            done = asyncio.run(measure(config))
            show(console, count, turns, done)
            steps_taken = [after - before for before, after in pairwise(done.times)]
            found[count] = [turns * seconds / one for one in steps_taken]
            needed[count] = done.processes[0].used / (len(done.times) - 1) / (turns * seconds or 1.0)
        ray.shutdown()
    for count, shares in found.items():
        print(ratio_line(f"driver, {count}", shares))
    for count, share in needed.items():
        print(ratio_line(f"driver's share of a core, {count}", [share]))


def show(console: Console, episodes: int, turns: int, done: Watched) -> None:
    """Print what was noted."""
    wall = done.times[-1] - done.times[0]
    each = wall / (len(done.times) - 1)
    title = f"{episodes} episodes of {turns} turns: {episodes / GROUP / each:.2f} groups/s, step {each:.2f} s"
    table = Table("process", "share of a core", "ms per turn", "memory, MiB", "open files", title=title)
    taken = episodes * turns * (len(done.times) - 1)
    for one in done.processes:
        cost = f"{1000 * one.used / taken:.2f}"
        table.add_row(one.name, f"{one.used / wall:.0%}", cost, change(one.memory), change(one.files))
    table.add_row("/dev/shm", "", "", change(done.shared), "")
    table.add_row("temporary folder", "", "", "", change(done.temporary))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
