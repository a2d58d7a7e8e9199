"""What the commands do, once the configuration has been checked."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from hindsight.cluster import signals
from hindsight.cluster.evaluate import Evaluation, evaluate, numbered
from hindsight.cluster.failures import FailureBudget, RunError, by_kind, in_words
from hindsight.cluster.folder import checkpoints, newest_step, sole_writer, storing
from hindsight.cluster.heal import Watched, keep
from hindsight.cluster.machines import cluster_nodes, connect
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.planning import plan_run
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.record import evaluation_rows
from hindsight.cluster.run import Run, open_run
from hindsight.cluster.start import STARTING, start_actors
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View, cost_lines, draw_curve, evaluation_table
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config, Lora
from hindsight.envs.base import EnvError
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.remote import RemoteError, call
from hindsight.learner.checkpoint import CheckpointError, complete, latest
from hindsight.learner.rank import LearnerError, RanksLost
from hindsight.learner.weight_sync import WeightSyncError
from hindsight.rollout.adapter import AdapterError, Saved, read
from hindsight.rollout.models import ModelMissing, ModelUnfit, resolve
from hindsight.rollout.render import load_renderer
from hindsight.rollout.template import TemplateError
from hindsight.rollout.types import EngineError
from hindsight.rollout.weights import WeightSet, checksum, pack


def expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the user; anything else is a defect and shows its traceback."""
    return (
        RunError,
        RemoteError,
        EnvError,
        EngineError,
        CheckpointError,
        WeightSyncError,
        LearnerError,
        AdapterError,
        ModelMissing,
        ModelUnfit,
        TemplateError,
    )


async def train_run(config: Config, address: str | None = None) -> None:
    """`hindsight train`: from a recipe to the closing table."""
    out = Path(config.out)
    with View() as view, storing(out), sole_writer(out, view.say):
        async with connected(config, address) as dashboard:
            view.say(f"Ray dashboard: {dashboard}" if dashboard else "Ray has no dashboard")
            while True:
                saved = newest_step(config)
                try:
                    await _train(config, view)
                    return
                except (RemoteError, RanksLost) as error:
                    current = asyncio.current_task()
                    signaled = current is not None and current.cancelling()
                    if signaled or newest_step(config) <= saved:  # or it would end like this again
                        raise
                    view.say(f"{error} Everything starts again from the last checkpoint.")
                    config = replace(config, resume="auto")
                    signals.go_on()


async def _train(config: Config, view: View) -> None:
    """Train with actors of its own, to the closing table.

    Raises:
        RemoteError, RanksLost: something was lost that cannot be replaced alone.
    """
    async with open_run(config, view) as run:
        trainer = Trainer(run)
        guarded = run.watchdog.guard(trainer.train(), trainer.publisher.keep())
        try:
            print_summary(run, await signals.train(run, asyncio.create_task(guarded)))
        finally:
            signals.end_within(signals.CLOSING)


@asynccontextmanager
async def connected(config: Config, address: str | None) -> AsyncIterator[str | None]:
    """Ray while the block runs; yields its dashboard's address. SIGTERM and SIGINT end the block in order.

    Raises:
        RunError: Ray cannot be joined or started. Interrupted: by a signal.
    """
    try:
        try:
            dashboard = connect(address, config.cluster.dashboard_port)
            await asyncio.sleep(0)  # where asyncio raises for a SIGINT that came meanwhile
        except SystemExit as stop:  # for a SIGTERM: ray.init has a handler of its own
            raise signals.Interrupted(signal.SIGTERM) from stop
        except asyncio.CancelledError as stop:
            raise signals.Interrupted(signal.SIGINT) from stop
        with signals.interruptible():
            yield dashboard
    finally:
        signals.end_within(signals.CLOSING)
        ray.shutdown()
        signals.go_on()  # in a program that does more than this


def print_summary(run: Run, evaluations: list[Evaluation]) -> None:
    """Print the closing summary and draw the learning curve."""
    console = run.view.console
    draw_curve(
        run.metrics.rows(),
        evaluations,
        run.out / "curve.png",
        f"{run.config.env.name}, {run.config.model.path}",
    )
    console.print(evaluation_table(evaluations))
    for line in cost_lines(run.metrics.rows()):
        console.print(line, highlight=False)
    newest = latest(checkpoints(run.config))
    console.print(
        f"model (for transformers and vLLM): {newest / 'model' if newest else 'none'}\n"
        f"also in {run.out}: curve.png, metrics.jsonl, tensorboard/, trajectories/, config.yaml",
        highlight=False,
    )
    for caveat in run.config.env.caveats:
        console.print(caveat, highlight=False)
    if failures := in_words(run.budget.counts):
        console.print(f"failures (never counted as rewards): {failures}", highlight=False)
    if replaced := in_words(run.actors.restarts.counts):
        console.print(f"processes that were lost and replaced: {replaced}", highlight=False)
    if aside := run.set_aside.entries:
        lines = [f"tasks set aside (delete their lines in {run.set_aside.file} to lift them):", *aside]
        console.print("\n  ".join(map(str, lines)), highlight=False, markup=False)


async def eval_run(config: Config, user_model: str, address: str | None = None) -> None:
    """`hindsight eval`: run the evaluation split with one checkpoint, without learner and teacher.

    Results go to `out`/eval/AGENT, apart from what a training run writes.
    """
    with View() as view, storing(Path(config.out)):
        async with connected(config, address):
            model = resolve(config.model.path)
            renderer = load_renderer(str(model), config)  # raises before any actor starts
            family = make_family(config.env)
            manifest = family.manifest()
            view.say(f"evaluation split of {len(manifest.evaluation)} tasks, digest {manifest.digest}")
            for caveat in config.env.caveats:
                view.say(caveat)
            # Merging would lose the adapter to rounding, so it is served on its base model.
            adapter = read(model)
            lora = adapter.settings if adapter else Lora()
            served = replace(config, learner=replace(config.learner, lora=lora))
            base = str(adapter.base if adapter else model)
            plan = plan_run(served, cluster_nodes(), base, learner=False, teacher=False)
            view.plan(plan)
            actors = await start_actors(plan, base, family, user_model=user_model)
            actors.restarts.say = view.say
            bring = serving(adapter, config)
            await asyncio.gather(*map(bring, actors.engines))
            watched = [Watched("engine", engine, partial(bring, engine)) for engine in actors.engines]
            keeping = keep(watched, actors.restarts, config.cluster.start_timeout)
            watchdog = Watchdog(config.cluster.stall_timeout)
            episodes = numbered(manifest.evaluation, config.evaluate.episodes)

            def played(done: int) -> None:
                watchdog.beat("evaluating")
                view.now("evaluating", done, len(episodes))

            stage = f"{config.model.path}, {config.evaluate.agent}"
            playing = evaluate(plan.config, actors, renderer, manifest.train, episodes, stage, 0, played)
            with watchdog.waiting(config.rollout.timeout):
                result, plays, failures = await watchdog.guard(playing, keeping)
            view.console.print(evaluation_table([result]))
            folder = Path(config.out) / "eval" / config.evaluate.agent
            metrics = Metrics(folder)
            metrics.write(0, "eval", result.metrics(), stage)
            metrics.close()
            write_rows(folder / "trajectories.jsonl", evaluation_rows(plays))
            view.say(f"metrics and trajectories are in {folder}")
            if failures:
                counts = in_words(by_kind(failures))
                view.say(f"failures: {counts}; {result.missing} of {len(episodes)} episodes are missing")
            FailureBudget(config.failure_budget).add(0, len(episodes), failures)
            await actors.stop()


def serving(adapter: Saved | None, config: Config) -> Callable[[Any], Awaitable[None]]:
    """What makes an engine serve the model that is evaluated: its base, or the adapter on it."""
    limit: dict[str, Any] = {"timeout": config.cluster.start_timeout, "setting": STARTING}
    if adapter is None:
        return partial(call, method="serve", **limit)
    flat, layout = pack(adapter.tensors.items())
    weights = WeightSet(1, layout, checksum(flat, layout), ray.put(flat))

    async def load(engine: Any) -> None:
        await call(engine, "load_weights", weights, what="loading the adapter", **limit)

    return load


def find_model(folder: Path) -> Path | None:
    """Find the model in a model folder, a checkpoint folder or a run's folder (its newest checkpoint)."""
    newest = [one / "model" / "config.json" for one in reversed(complete(folder / "checkpoints"))]
    for candidate in (folder / "config.json", folder / "model" / "config.json", *newest):
        if candidate.is_file():
            return candidate.parent
    return None
