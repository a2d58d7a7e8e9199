"""The supervised warm start on demonstrations, through the same learner as RL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from hindsight.cluster.failures import RunError
from hindsight.cluster.start import Actors
from hindsight.cluster.watch import all_but_stragglers
from hindsight.configs.schema import Config
from hindsight.envs.base import Demonstration, EnvError, NoDemonstration
from hindsight.envs.runtime.remote import AnswerLost, RemoteTimeout
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.demos import demonstration_samples
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Failure
from hindsight.rollout.worker import ask_worker

Report = Callable[[int, int, dict[str, float]], None]
Progressing = Callable[[str, int, int], None]


def linear(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then linear decay toward zero over the rest."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


async def collect(
    config: Config, actors: Actors, tasks: Sequence[TaskSpec], now: Progressing
) -> tuple[list[Demonstration], list[Failure]]:
    """Collect `sft.demos` demonstrations on training tasks: the successful ones, and the failures.

    One that takes longer than `rollout.timeout` is a failure, too.

    Raises:
        RunError: none succeeded.
    """
    settings, done, limit = config.sft, 0, config.rollout.timeout
    # The timeout is for an episode, not for its wait in the queue.
    free = asyncio.Semaphore(config.env.at_once)

    async def play(index: int, task: TaskSpec) -> Demonstration | EnvError | AnswerLost | None:
        nonlocal done
        try:
            async with free:
                asked, what = (task, config.seed + index, settings.noise), f"demonstration {index}"
                shown: Demonstration = await ask_worker(
                    actors.worker, config, "demonstrate", *asked, what=what
                )
                return shown
        except (EnvError, AnswerLost) as error:  # already retried where it happened
            return error
        except RemoteTimeout:
            return None
        finally:
            done += 1
            now("collecting demonstrations", done, settings.demos)

    chosen = [tasks[index % len(tasks)] for index in range(settings.demos)]
    played = await all_but_stragglers([play(*one) for one in enumerate(chosen)], limit)
    if all(isinstance(shown, NoDemonstration) for shown in played):
        raise RunError(
            f"{tasks[0].env} has no demonstrations for the warm start, as its tasks have no reference "
            "solutions: set sft.demos=0"
        )
    late = f"took longer than rollout.timeout = {limit:g} s"
    failures = [
        Failure("demonstration", str(shown or late), task.id)
        for shown, task in zip(played, chosen, strict=True)
        if not isinstance(shown, Demonstration | NoDemonstration)
    ]
    kept = [shown for shown in played if isinstance(shown, Demonstration) and shown.success]
    if not kept:
        raise RunError(
            f"none of {settings.demos} demonstrations succeeded ({len(failures)} infrastructure failures), "
            f"so there is nothing to learn from. Raise env.max_turns = {config.env.max_turns}, lower "
            f"sft.noise = {settings.noise}, or set sft.demos=0."
        )
    return kept, failures


def batches(
    samples: Sequence[TrainingSample], size: int, epochs: int, seed: int
) -> list[list[TrainingSample]]:
    """Shuffled batches over all epochs; in an epoch, every sample occurs once."""
    rng = np.random.default_rng([seed, 17])
    plan: list[list[TrainingSample]] = []
    for _ in range(epochs):
        order = rng.permutation(len(samples))
        plan += [[samples[i] for i in order[start : start + size]] for start in range(0, len(samples), size)]
    return plan


async def fine_tune(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    tasks: Sequence[TaskSpec],
    now: Progressing,
    report: Report,
) -> list[Failure]:
    """Run the supervised warm start; returns the failures on the way.

    Raises:
        RunError: there is no demonstration to learn from.
    """
    assert actors.learner is not None
    settings = config.sft
    demonstrations, failures = await collect(config, actors, tasks, now)
    samples: list[TrainingSample] = []
    for index, demonstration in enumerate(demonstrations):
        own = demonstration_samples(demonstration, renderer, settings.hints, config.seed + index)
        if not own and any(step.action == step.expert for step in demonstration.steps):
            message = f"no turn of its demonstration fits model.max_length = {renderer.context}"
            failures.append(Failure("prompt", message, demonstration.task.id))
        samples += own
    if not samples:
        raise RunError(
            f"no turn of {len(demonstrations)} successful demonstrations fits the model's context: raise "
            f"model.max_length = {renderer.context}, or set prompt.list_actions=false"
        )
    plan = batches(samples, settings.batch_rows, settings.epochs, config.seed)
    for step, batch in enumerate(plan):
        lr = linear(step, len(plan), settings.lr, warmup=max(1, len(plan) // 20))
        stats = await actors.learner.update({"sft": batch}, strength=0.0, lr=lr)
        report(step + 1, len(plan), stats)
    # SFT's first gradients are about ten times those of RL: Adam would remember them for a thousand steps and
    # shorten every step by as much.
    await actors.learner.reset_optimizer()
    return failures
