"""Evaluation on the fixed panel: success with its 95 % interval."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from cluster.start import Actors
from cluster.trials import Attempts, open_trials, solved_within
from configs.schema import Config
from envs.tasks import TaskSpec
from rollout.render import Renderer
from rollout.types import Failure, Trajectory


@dataclass(frozen=True)
class Evaluation:
    """Success over a panel, after the last trial. `low` and `high` bound its 95 % Wilson interval."""

    stage: str
    step: int
    episodes: int  # tasks played: each once, or in several trials
    success: float
    low: float
    high: float
    turns: float  # per trial
    seconds: float
    tokens_read: int = 0  # whole contexts, of turns and lessons
    tokens_written: int = 0
    solved: list[int] = field(default_factory=list)  # tasks, after each trial

    def after_trials(self) -> list[tuple[float, float, float]]:
        """Success and its interval after trial 1, 2, …"""
        return [(n / max(1, self.episodes), *wilson(n, self.episodes)) for n in self.solved]

    def metrics(self) -> dict[str, float]:
        """The figures as a metrics row."""
        left_out = ("stage", "step", "solved")
        values = {name: float(value) for name, value in asdict(self).items() if name not in left_out}
        for trial, (success, low, high) in enumerate(self.after_trials(), start=1):
            values |= {
                f"success_trial_{trial}": success,
                f"low_trial_{trial}": low,
                f"high_trial_{trial}": high,
            }
        return {f"eval/{name}": value for name, value in values.items()}


def wilson(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate; (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    rate, spread = successes / episodes, z * z / episodes
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes))
    return max(0.0, centre - half), min(1.0, centre + half)


def panel(tasks: tuple[TaskSpec, ...], episodes: int) -> list[tuple[int, TaskSpec]]:
    """The numbered episodes of an evaluation; tasks repeat when the panel is shorter."""
    return [(index, tasks[index % len(tasks)]) for index in range(episodes)]


async def evaluate(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    train: Sequence[TaskSpec],
    episodes: list[tuple[int, TaskSpec]],
    stage: str,
    step: int,
    played: Callable[[int], None],
) -> tuple[Evaluation, list[Trajectory], list[Failure]]:
    """Play the episodes by `evaluate.policy` with the engines' weights.

    A task that infrastructure broke, in whichever trial, is left out of every rate.

    Args:
        train: training tasks, which worked examples are taken from.
        played: called with the number of finished tasks whenever something moved.
    """
    clock = asyncio.get_running_loop().time
    started, done = clock(), 0

    def moved() -> None:
        played(done)

    trials = await open_trials(config, actors, renderer, train, (task.kind for _, task in episodes), moved)

    async def play(index: int, task: TaskSpec) -> Attempts:
        nonlocal done
        attempts = await trials.play(index, task, moved)
        done += 1
        moved()
        return attempts

    attempts = await asyncio.gather(*(play(*episode) for episode in episodes))
    kept = [one for one in attempts if not one.broken]
    solved = solved_within(kept, trials.most)
    trajectories = [trajectory for one in kept for trajectory in one.trajectories]
    low, high = wilson(solved[-1], len(kept))
    result = Evaluation(
        stage=stage,
        step=step,
        episodes=len(kept),
        success=solved[-1] / max(1, len(kept)),
        low=low,
        high=high,
        turns=sum(len(t.turns) for t in trajectories) / max(1, len(trajectories)),
        seconds=clock() - started,
        tokens_read=sum(one.tokens_read for one in attempts),
        tokens_written=sum(one.tokens_written for one in attempts),
        solved=solved,
    )
    everything = [trajectory for one in attempts for trajectory in one.trajectories]
    return result, everything, [failure for one in attempts for failure in one.failures]
