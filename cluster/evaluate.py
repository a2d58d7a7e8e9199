"""Evaluation on panels of tasks: success with its 95 % interval."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from hindsight.cluster.failures import RunError, by_kind, list_failures, typical
from hindsight.cluster.outcomes import Play, all_figures
from hindsight.cluster.report.run_folder import COLD
from hindsight.cluster.start import Actors
from hindsight.cluster.trials import Attempts, open_trials, solved_within
from hindsight.cluster.watch import all_but_stragglers
from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import AnswerLost, RemoteTimeout
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Failure, FailureKind, Trajectory


class Stage(StrEnum):
    """When a training run evaluates."""

    BEFORE_SFT = COLD
    AFTER_SFT = "after warm start"
    DURING_RL = "during RL"
    AFTER_RL = "after RL"


@dataclass(frozen=True)
class Evaluation:
    """Success after the last trial. `low` and `high` bound its 95 % Wilson interval.

    Episodes of the same task are not independent: see `effective_plays`. Rates and intervals are of the
    episodes that finished; those that an infrastructure failure or a deadline ended are missing.
    """

    stage: str  # a `Stage`, or what `hindsight eval` evaluates
    step: int
    episodes: int  # that finished, each in one or several trials
    success: float
    low: float
    high: float
    turns: float  # per trial
    seconds: float = 0.0
    tokens_read: int = 0  # whole contexts, of turns and lessons
    tokens_written: int = 0
    solved: list[int] = field(default_factory=list)  # tasks, after each trial
    intervals: list[tuple[float, float]] = field(default_factory=list)  # of success after each trial
    missing: int = 0  # episodes that did not finish
    panel: str = ""  # name of the panel
    digest: str = ""  # of the panel's tasks
    figures: dict[str, list[float]] = field(default_factory=dict)  # `outcomes.figures`: mean, low, high

    def __str__(self) -> str:
        missing = (
            f", {self.missing} of {self.episodes + self.missing} episodes missing" if self.missing else ""
        )
        on = f", {self.panel}" if self.panel else ""
        return f"{self.stage}{on}: success {self.success:.1%} ({self.low:.1%} to {self.high:.1%}){missing}"

    def after_trials(self) -> list[tuple[float, float, float]]:
        """Success and its interval after trial 1, 2, …"""
        rates = (n / max(1, self.episodes) for n in self.solved)
        return [(rate, *bounds) for rate, bounds in zip(rates, self.intervals, strict=True)]

    def metrics(self, first: bool = True) -> dict[str, float]:
        """The figures as metrics, which have the panel in their names unless it is the first."""
        left_out = ("stage", "step", "solved", "intervals", "panel", "digest", "figures")
        values = {name: float(value) for name, value in asdict(self).items() if name not in left_out}
        for trial, (success, low, high) in enumerate(self.after_trials(), start=1):
            values |= {
                f"success_trial_{trial}": success,
                f"low_trial_{trial}": low,
                f"high_trial_{trial}": high,
            }
        for name, (mean, low, high) in self.figures.items():
            values |= {name: values.get(name, mean), f"low_{name}": low, f"high_{name}": high}
        topic = "eval" if first else f"eval/{self.panel}"
        return {f"{topic}/{name}": value for name, value in values.items()}


def row_of(results: Sequence[Evaluation]) -> dict[str, float]:
    """The metrics of an evaluation on several panels."""
    return {k: v for place, one in enumerate(results) for k, v in one.metrics(first=place == 0).items()}


def first_panel(results: Sequence[Evaluation]) -> str:
    """The panel of the learning curve."""
    return next((one.panel for one in results if one.panel), "")


def wilson(rate: float, episodes: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate; (0, 1) for no episodes."""
    if episodes == 0:
        return 0.0, 1.0
    spread = z * z / episodes
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes))
    return max(0.0, center - half), min(1.0, center + half)


def effective_plays(tasks: Sequence[str], outcomes: Sequence[bool]) -> float:
    """Effective sample size: p(1 − p) over the cluster-robust variance of the success rate, by task.

    At least the number of tasks, at most the number of episodes. If all episodes agree, the variance is not
    informative, and it is the number of tasks.
    """
    plays, count = len(outcomes), len(set(tasks))
    rate = sum(outcomes) / max(1, plays)
    if count == plays or count < 2 or rate in (0.0, 1.0):
        return float(count)
    apart: defaultdict[str, float] = defaultdict(float)
    for task, outcome in zip(tasks, outcomes, strict=True):
        apart[task] += outcome - rate
    variance = count / (count - 1) * sum(one * one for one in apart.values()) / plays**2
    return float(plays) if variance == 0 else min(plays, max(count, rate * (1 - rate) / variance))


def numbered(tasks: Sequence[TaskSpec], episodes: int) -> list[tuple[int, TaskSpec]]:
    """Return the numbered episodes of an evaluation; tasks repeat if there are fewer."""
    return [(index, tasks[index % len(tasks)]) for index in range(episodes)]


async def run_evaluation(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    train: Sequence[TaskSpec],
    episodes: list[tuple[int, TaskSpec]],
    stage: str,
    step: int,
    played: Callable[[int], None],
) -> tuple[Evaluation, list[tuple[Trajectory, ...]], list[Failure]]:
    """Run the episodes with `evaluate.agent` and the engines' weights; also returns the trials of each.

    A task is left out of every rate if infrastructure failed in any trial, if a trial took longer than
    `rollout.timeout`, or if its prompt is too long.

    Args:
        train: training tasks, which worked examples are taken from.
        played: called with the number of finished tasks whenever there is progress.

    Raises:
        RunError: no episode finished.
    """
    clock = asyncio.get_running_loop().time
    started, done = clock(), 0

    def moved() -> None:
        played(done)

    failures: list[Failure] = []
    kinds = (task.kind for _, task in episodes)
    trials = await open_trials(config, actors, renderer, train, kinds, moved, failures)
    # The timeout is for an episode, not for its wait in the queue.
    free = asyncio.Semaphore(config.env.at_once)

    async def play(index: int, task: TaskSpec) -> Attempts | None:
        nonlocal done
        async with free:
            try:
                attempts = await trials.play(index, task, moved)
            except AnswerLost as error:
                attempts = unfinished(task, "lost", str(error))
            except RemoteTimeout:
                return None
        done += 1
        moved()
        return attempts

    limit = config.rollout.timeout
    late = f"took longer than rollout.timeout = {limit:g} s"
    played_out = await all_but_stragglers([play(*one) for one in episodes], limit * trials.most)
    attempts = [
        one or unfinished(task, "timeout", f"evaluation episode {index} {late}")
        for one, (index, task) in zip(played_out, episodes, strict=True)
    ]
    result = summarize(stage, step, [task.id for _, task in episodes], attempts, trials.most)
    failures += [failure for one in attempts for failure in one.failures]
    plays = [one.trajectories for one in attempts]
    return replace(result, seconds=clock() - started), plays, failures


def unfinished(task: TaskSpec, kind: FailureKind, why: str) -> Attempts:
    """The attempts of a task whose answer was lost or too late."""
    return Attempts((), failures=(Failure(kind, why, task.id),), broken=True)


def summarize(
    stage: str, step: int, tasks: Sequence[str], attempts: Sequence[Attempts], trials: int
) -> Evaluation:
    """Summarize the attempts; `tasks` are their task ids.

    Raises:
        RunError: none of them finished.
    """
    kept = [(task, one) for task, one in zip(tasks, attempts, strict=True) if not one.broken]
    if not kept:
        failures = [failure for one in attempts for failure in one.failures]
        last = typical(failures)
        raise RunError(
            f"{stage}: none of {len(attempts)} evaluation episodes finished "
            f"({list_failures(by_kind(failures))}). "
            f"The last {last.kind}, on task {last.task}: {last.message}"
        )
    outcomes = solved_within((one for _, one in kept), trials)
    solved = [sum(after) for after in outcomes]
    rates = [number / max(1, len(kept)) for number in solved]
    told = [effective_plays([task for task, _ in kept], after) for after in outcomes]
    intervals = [wilson(*one) for one in zip(rates, told, strict=True)]
    trajectories = [trajectory for _, one in kept for trajectory in one.trajectories]
    plays: defaultdict[str, list[Play]] = defaultdict(list)
    for task, one in kept:
        plays[task].append(one.play)
    told_by_task = {name: [one.mean, one.low, one.high] for name, one in all_figures(plays).items()}
    low, high = intervals[-1]
    return Evaluation(
        stage=stage,
        step=step,
        episodes=len(kept),
        success=rates[-1],
        low=low,
        high=high,
        turns=sum(len(t.turns) for t in trajectories) / max(1, len(trajectories)),
        tokens_read=sum(one.tokens_read for one in attempts),
        tokens_written=sum(one.tokens_written for one in attempts),
        solved=solved,
        intervals=intervals,
        missing=len(attempts) - len(kept),
        figures={name: own for name, own in told_by_task.items() if name != "success"},
    )
