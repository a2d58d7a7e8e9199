"""The supervised warm start on demonstrations, through the same learner as RL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from hindsight.cluster.failures import RunError
from hindsight.cluster.start import Actors
from hindsight.configs.schema import Config
from hindsight.envs.base import Demonstration, EnvError, NoDemonstration
from hindsight.envs.runtime.remote import call
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.demos import demonstration_samples
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Failure

Report = Callable[[int, int, dict[str, float]], None]
Now = Callable[[str, int, int], None]


def linear(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then linear decay towards zero over the rest."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


async def collect(
    config: Config, actors: Actors, tasks: Sequence[TaskSpec], now: Now
) -> tuple[list[Demonstration], list[Failure]]:
    """Collect `sft.demos` demonstrations on training tasks: the successful ones, and the failures.

    Raises:
        RunError: none succeeded.
    """
    settings, done, failures = config.sft, 0, list[Failure]()
    # The timeout is for an episode, not for its wait in the queue.
    free = asyncio.Semaphore(config.env.at_once)

    async def play(index: int) -> Demonstration | None:
        nonlocal done
        task = tasks[index % len(tasks)]
        try:
            async with free:
                shown: Demonstration = await call(
                    actors.worker,
                    "demonstrate",
                    task,
                    config.seed + index,
                    settings.noise,
                    timeout=config.rollout.timeout,
                    setting="rollout.timeout",
                    what=f"demonstration {index}",
                )
                return shown
        except NoDemonstration:
            return None
        except EnvError as error:  # already retried where it happened
            failures.append(Failure("demonstration", str(error), task.id))
            return None
        finally:
            done += 1
            now("collecting demonstrations", done, settings.demos)

    played = await asyncio.gather(*(play(index) for index in range(settings.demos)))
    kept = [demonstration for demonstration in played if demonstration and demonstration.success]
    if not any(played) and not failures:
        raise RunError(
            f"{tasks[0].env} has no demonstrations for the warm start, as its tasks have no reference "
            "solutions: set sft.demos=0"
        )
    if not kept:
        raise RunError(
            f"none of {settings.demos} demonstrations succeeded ({len(failures)} infrastructure failures), "
            "so there is "
            f"nothing to learn from. Raise env.max_turns = {config.env.max_turns}, lower sft.noise = "
            f"{settings.noise}, or set sft.demos=0."
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
    now: Now,
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
