"""Run an evaluation task with `evaluate.agent`: every agent is the same loop.

student    one trial, nothing before the task
react      one trial, a worked example before the task (ReAct, arXiv 2210.03629)
reflexion  trials until one succeeds; a failed one leaves a lesson to the next (Reflexion, arXiv 2303.11366)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hindsight.cluster.failures import RunError
from hindsight.cluster.outcomes import Play
from hindsight.cluster.start import Actors
from hindsight.configs.schema import Config
from hindsight.envs.base import DataMissing, Demonstration, EnvError, NoDemonstration
from hindsight.envs.runtime.remote import AnswerLost, RemoteTimeout
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, EngineAsk, JudgeError
from hindsight.feedback.preamble import preamble, question, remember, worked_example
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Failure, Trajectory, Tried
from hindsight.rollout.worker import ask_worker, generate_on, tally

EVAL_SEED = 1_000_003  # apart from training seeds, the same for every evaluation
DEMONSTRATED = 4  # tasks whose shortest demonstration becomes the worked example


@dataclass(frozen=True)
class Attempts:
    """The trials of one task."""

    trajectories: tuple[Trajectory, ...]  # in order; only the last can be successful
    answers: tuple[Answer, ...] = ()  # lessons as written
    failures: tuple[Failure, ...] = ()
    broken: bool = False  # an infrastructure failure ended it, so it is not a result

    @property
    def play(self) -> Play:
        """Its result: the outcome of the last trial, with the mean number of turns over all trials."""
        turns = sum(len(trajectory.turns) for trajectory in self.trajectories) / len(self.trajectories)
        last = self.trajectories[-1]
        return Play(last.success, last.reward, turns, float(self.tokens_written))

    @property
    def tokens_read(self) -> int:
        """Full contexts of turns and lessons, prefix-cache hits included."""
        played = sum(tally(trajectory)["prompt_tokens"] for trajectory in self.trajectories)
        return played + sum(answer.tokens_read for answer in self.answers)

    @property
    def tokens_written(self) -> int:
        """Sampled in turns and lessons."""
        played = sum(tally(trajectory)["generated_tokens"] for trajectory in self.trajectories)
        return played + sum(answer.tokens_written for answer in self.answers)


def solved_within(attempts: Iterable[Attempts], trials: int) -> list[list[bool]]:
    """Which tasks are solved after trial 1, 2, … `trials`."""
    first = [
        next((number for number, t in enumerate(one.trajectories) if t.success), trials) for one in attempts
    ]
    return [[number <= trial for number in first] for trial in range(trials)]


class Trials:
    """Runs tasks with the engines' weights, and asks them for lessons if the agent uses those."""

    def __init__(
        self, config: Config, actors: Actors, renderer: Renderer, examples: Mapping[str, str]
    ) -> None:
        """
        Args:
            examples: task type -> worked example.
        """
        self.config = config
        self.most = config.evaluate.attempts
        self._worker = actors.worker
        self._examples = examples
        seconds = config.rollout.request_timeout
        engines = [generate_on(engine, number, seconds) for number, engine in enumerate(actors.engines)]
        self._ask = EngineAsk(renderer, engines, config.judge)

    async def play(self, index: int, task: TaskSpec, moved: Callable[[], None]) -> Attempts:
        """Run one task; `moved` is called after each trial.

        Args:
            index: number of the episode; it fixes the seeds.
        """
        played: list[Trajectory] = []
        answers: list[Answer] = []
        failures: list[Failure] = []
        lessons: tuple[str, ...] = ()
        broken = False
        for trial in range(self.most):
            before = preamble(self._examples.get(task.kind, ""), lessons)
            outcome = await self._roll_out(index, task, trial, before)
            moved()
            if isinstance(outcome, Failure):
                failures.append(outcome)
                broken = True
                break
            played.append(outcome)
            if outcome.success or trial + 1 == self.most:
                break
            try:
                answers.append(await self._ask(question(played[-1])))
            except JudgeError as error:
                failures.append(Failure("judge", str(error), task.id))
                broken = True
                break
            lessons = remember(lessons, answers[-1].text)
        return Attempts(tuple(played), tuple(answers), tuple(failures), broken)

    async def _roll_out(self, index: int, task: TaskSpec, trial: int, before: str) -> Trajectory | Failure:
        asked = (index, 0, task, self.config.evaluate.temperature, EVAL_SEED + trial, before)
        what = f"evaluation episode {index}, trial {trial + 1}"
        tried: Tried[Trajectory] = await ask_worker(self._worker, self.config, "play", *asked, what=what)
        return tried.outcome


async def open_trials(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    train: Sequence[TaskSpec],
    kinds: Iterable[str],
    moved: Callable[[], None],
    failures: list[Failure],
) -> Trials:
    """Open the configured agent, with a worked example for each task type if it shows one.

    Args:
        train: the training tasks, which the examples are taken from.
        kinds: of the tasks to be played.
        failures: receives those of demonstrations.

    Raises:
        DataMissing: the environment's data are missing.
        RunError: no demonstration was successful, or ReAct has none to show. Reflexion does without.
    """
    if config.evaluate.agent == "student":
        return Trials(config, actors, renderer, {})
    form = renderer.form
    wanted = sorted(set(kinds))
    # The timeout is for a demonstration, not for its wait in the queue.
    free = asyncio.Semaphore(config.env.at_once)
    found = await asyncio.gather(
        *(_shortest(config, actors, example_tasks(train, kind), free, moved, failures) for kind in wanted)
    )
    examples = {
        kind: worked_example(demonstration, form, config.evaluate.example_characters)
        for kind, demonstration in zip(wanted, found, strict=True)
        if demonstration is not None
    }
    return Trials(config, actors, renderer, examples)


def example_tasks(train: Sequence[TaskSpec], kind: str) -> list[TaskSpec]:
    """The first training tasks of that type; if there are none, the first of all."""
    same = [task for task in train if task.kind == kind]
    return list(same or train)[:DEMONSTRATED]


async def _shortest(
    config: Config,
    actors: Actors,
    tasks: Sequence[TaskSpec],
    free: asyncio.Semaphore,
    moved: Callable[[], None],
    failures: list[Failure],
) -> Demonstration | None:
    """Return the successful demonstration with the fewest steps; None if the tasks have none.

    One that fails, or takes longer than `rollout.timeout`, is a failure; the others suffice.
    """
    failed: list[Failure] = []

    async def show(task: TaskSpec) -> Demonstration | None:
        asked, what = (task, config.seed, 0.0), f"demonstrating {task.id}"
        try:
            async with free:
                shown: Demonstration = await ask_worker(
                    actors.worker, config, "demonstrate", *asked, what=what
                )
        except NoDemonstration:
            return None
        except DataMissing:
            raise
        except (EnvError, RemoteTimeout, AnswerLost) as error:  # already retried where it happened
            failed.append(Failure("demonstration", str(error), task.id))
            return None
        moved()
        return shown

    shown = [one for one in await asyncio.gather(*map(show, tasks)) if one]
    failures += failed
    if failed and not shown:
        raise RunError(
            f"evaluate.agent = {config.evaluate.agent} shows a worked example, but all {len(failed)} "
            f"demonstrations for it failed. The last, of task {failed[-1].task}: {failed[-1].message}. "
            "Repair this, or set evaluate.agent=student"
        )
    if not shown and config.evaluate.agent != "react":
        return None
    if not shown:
        raise RunError(
            f"evaluate.agent = react shows a worked example, but the tasks of {tasks[0].env} have no "
            "reference solutions: set evaluate.agent to student or reflexion"
        )
    solved = [one for one in shown if one.success]
    if not solved:
        raise RunError(
            f"evaluate.agent = {config.evaluate.agent} shows a worked example, and no demonstration of "
            f"{', '.join(task.id for task in tasks)} succeeds: raise env.max_turns = {config.env.max_turns}"
        )
    return min(solved, key=lambda one: len(one.steps))
