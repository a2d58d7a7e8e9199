"""What the commands do, once the configuration has been checked."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from hindsight.cluster import signals
from hindsight.cluster.evaluate import Evaluation, evaluate, numbered
from hindsight.cluster.failures import FailureBudget, Interrupted, RunError, by_kind, in_words
from hindsight.cluster.folder import checkpoints, newest_step, sole_writer, storing
from hindsight.cluster.heal import Watched, keep
from hindsight.cluster.machines import cluster_nodes, connect
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.planning import plan_run
from hindsight.cluster.prepare import Ready, prepare
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.record import evaluation_rows
from hindsight.cluster.report.run_folder import EPISODES, evaluation_key
from hindsight.cluster.run import Run, open_run
from hindsight.cluster.start import STARTING, start_actors
from hindsight.cluster.step_report import nothing_trained
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View, cost_lines, draw_curve, evaluation_table
from hindsight.cluster.watch import Watchdog
from hindsight.configs.check import render
from hindsight.configs.schema import Config, Lora
from hindsight.envs.base import EnvError
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.remote import RemoteError, call
from hindsight.feedback.anchors import AnchorError
from hindsight.learner.checkpoint import CheckpointError, complete, latest, step_of
from hindsight.learner.rank import LearnerError, RanksLost
from hindsight.learner.weight_sync import WeightSyncError
from hindsight.rollout.adapter import AdapterError, Saved, read
from hindsight.rollout.models import ModelMissing, ModelUnfit, resolve
from hindsight.rollout.render import load_renderer
from hindsight.rollout.template import TemplateError
from hindsight.rollout.types import EngineError, Trajectory
from hindsight.rollout.weights import WeightSet, pack
from hindsight.teacher.plan import BudgetError
from hindsight.teacher.scorer import WeightsError


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
        AnchorError,
        BudgetError,
        WeightsError,
        ModelMissing,
        ModelUnfit,
        TemplateError,
    )


async def train_run(config: Config, address: str | None = None) -> None:
    """`hindsight train`: from a recipe to the closing table."""
    out = Path(config.out)
    with View() as view, storing(out), sole_writer(out, view.say):
        ready = prepare(config, view)  # what is wrong without Ray is said before it starts
        async with connected(config, address, view):
            while True:
                saved = newest_step(config)
                try:
                    await _train(config, view, ready)
                    return
                except (RemoteError, RanksLost) as error:
                    current = asyncio.current_task()
                    signaled = current is not None and current.cancelling()
                    if signaled or newest_step(config) <= saved:  # or it would end like this again
                        raise
                    view.say(f"{error} Everything starts again from the last checkpoint.")
                    signals.go_on()
                    config = replace(config, resume="auto")
                    ready = prepare(config, view)


async def _train(config: Config, view: View, ready: Ready) -> None:
    """Train with actors of its own, to the closing table.

    Raises:
        RemoteError, RanksLost: something was lost that cannot be replaced alone.
    """
    async with open_run(config, view, ready) as run:
        trainer = Trainer(run)
        guarded = run.watchdog.guard(trainer.train(), trainer.publisher.keep())
        try:
            print_summary(run, await signals.train(run, asyncio.create_task(guarded)))
        finally:
            signals.end_within(signals.CLOSING)


@asynccontextmanager
async def connected(config: Config, address: str | None, view: View) -> AsyncIterator[None]:
    """Ray while the block runs. SIGTERM and SIGINT end the block in order.

    Raises:
        RunError: Ray cannot be joined or started. Interrupted: by a signal.
    """
    try:
        try:
            await asyncio.sleep(0)  # where asyncio raises for a SIGINT that came meanwhile
            view.phase("starting Ray")
            dashboard = connect(address, config.cluster.dashboard_port)
            await asyncio.sleep(0)
        except SystemExit as stop:  # for a SIGTERM: ray.init has a handler of its own
            raise Interrupted(signal.SIGTERM) from stop
        except asyncio.CancelledError as stop:
            raise Interrupted(signal.SIGINT) from stop
        with signals.interruptible():
            view.say(
                f"Ray dashboard: {dashboard} (it asks for a token, which `ray get-auth-token` prints)"
                if dashboard
                else "Ray has no dashboard"
            )
            yield
    finally:
        signals.end_within(signals.CLOSING)
        ray.shutdown()
        signals.go_on()  # in a program that does more than this


def print_summary(run: Run, evaluations: list[Evaluation]) -> None:
    """Print the closing summary and draw the learning curve."""
    view, rows = run.view, run.metrics.rows()
    view.phase("ending")
    title = f"{run.config.env.name}, {run.config.model.path}"
    draw_curve(rows, evaluations, run.out / "curve.png", title)
    view.show(evaluation_table(evaluations))
    newest = latest(checkpoints(run.config))
    lines = [
        *nothing_trained(rows),
        *cost_lines(rows),
        f"model (for transformers and vLLM): {newest / 'model' if newest else 'none'}",
        f"also in {run.out}: curve.png, metrics.jsonl, trajectories/, tokens/, config.yaml, log.txt",
        *run.config.env.caveats,
    ]
    if failures := in_words(run.budget.counts):
        lines.append(f"failures (never counted as rewards): {failures}")
    if replaced := in_words(run.actors.restarts.counts):
        lines.append(f"processes that were lost and replaced: {replaced}")
    if aside := run.set_aside.entries:
        lines.append(f"tasks set aside (delete their lines in {run.set_aside.file} to lift them):")
        lines += [f"  {one}" for one in aside]
    for line in lines:
        view.show(line)


async def eval_run(config: Config, user_model: str, address: str | None = None) -> None:
    """`hindsight eval`: run the evaluation split with one checkpoint, without learner and teacher.

    Results go to `evaluation_folder`, apart from what a training run writes.

    Raises:
        RunError: they are there already, or no episode finished.
    """
    folder = evaluation_folder(config)
    if folder.exists():
        raise RunError(
            f"{folder} already holds an evaluation. Rename or delete that folder, or set another `out`"
        )
    with View() as view, storing(Path(config.out)):
        view.phase("preparing")
        model = resolve(config.model.path)
        renderer = load_renderer(str(model), config)
        family = make_family(config.env)
        manifest = family.manifest()
        episodes = numbered(manifest.evaluation, config.evaluate.episodes)
        view.say(f"evaluating {config.model.path}, {config.evaluate.agent}: {len(episodes)} episodes")
        view.say(f"evaluation split of {len(manifest.evaluation)} tasks, digest {manifest.digest}")
        for caveat in config.env.caveats:
            view.say(caveat)
        async with connected(config, address, view):
            # Merging would lose the adapter to rounding, so it is served on its base model.
            adapter = read(model)
            lora = adapter.settings if adapter else Lora()
            served = replace(config, learner=replace(config.learner, lora=lora))
            base = str(adapter.base if adapter else model)
            plan = plan_run(served, cluster_nodes(), base, learner=False, teacher=False)
            view.plan(plan)
            view.phase("starting actors")
            actors = await start_actors(plan, base, family, view.starting, user_model=user_model)
            actors.restarts.say = view.say
            bring = serving(adapter, config)
            await asyncio.gather(*map(bring, actors.engines))
            watched = [Watched("engine", engine, partial(bring, engine)) for engine in actors.engines]
            keeping = keep(watched, actors.restarts, config.cluster.start_timeout)
            watchdog = Watchdog(config.cluster.stall_timeout)

            def played(done: int) -> None:
                watchdog.beat("evaluating")
                view.advance(done, len(episodes))

            view.phase("evaluating", len(episodes))
            step = evaluated_step(Path(config.model.path))
            told = (config.evaluate.agent, step, played)
            playing = evaluate(plan.config, actors, renderer, manifest.train, episodes, *told)
            with watchdog.waiting(config.rollout.timeout):
                result, plays, failures = await watchdog.guard(playing, keeping)
            view.show(evaluation_table([result]))
            write_evaluation(folder, config, manifest.digest, result, plays)
            view.say(f"settings, metrics and trajectories are in {folder}")
            if failures:
                counts = in_words(by_kind(failures))
                view.say(f"failures: {counts}; {result.missing} of {len(episodes)} episodes are missing")
            FailureBudget(config.failure_budget).add(0, len(episodes), failures)
            await actors.stop()


def write_evaluation(
    folder: Path,
    config: Config,
    digest: str,
    result: Evaluation,
    plays: Iterable[Sequence[Trajectory]],
) -> None:
    """Write what a run's folder has of an evaluation, and of what it is: evaluation.json.

    Args:
        digest: of the tasks.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(render(config))
    about = {"checkpoint": config.model.path, "agent": config.evaluate.agent, "tasks": digest}
    (folder / "evaluation.json").write_text(json.dumps(about, indent=1) + "\n")
    metrics = Metrics(folder, config.tracker)
    metrics.start()
    metrics.write(result.step, "eval", result.metrics(), result.stage)
    metrics.close()
    key = evaluation_key(result.step, result.stage)
    write_rows(folder / EPISODES / f"{key}.jsonl", evaluation_rows(plays))


def serving(adapter: Saved | None, config: Config) -> Callable[[Any], Awaitable[None]]:
    """What makes an engine serve the model that is evaluated: its base, or the adapter on it."""
    limit: dict[str, Any] = {"timeout": config.cluster.start_timeout, "setting": STARTING}
    if adapter is None:
        return partial(call, method="serve", **limit)
    flat, layout, checksum = pack(adapter.tensors.items())
    weights = WeightSet(1, layout, checksum, ray.put(flat))

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


def checkpoint_of(model: Path) -> Path | None:
    """The checkpoint that a model folder is part of, if it is."""
    return model.parent if model.name == "model" and model.parents[1].name == "checkpoints" else None


def run_of(model: Path) -> Path | None:
    """The folder of the run that a model folder belongs to, if its settings are there."""
    checkpoint = checkpoint_of(model)
    run = checkpoint.parents[1] if checkpoint else model
    return run if (run / "config.yaml").is_file() else None


def evaluated_step(model: Path) -> int:
    """Finished training steps of a model; 0 if it is no checkpoint's."""
    checkpoint = checkpoint_of(model)
    return step_of(checkpoint) if checkpoint and checkpoint in complete(checkpoint.parent) else 0


def evaluation_folder(config: Config) -> Path:
    """Where `hindsight eval` writes: `out`/eval/CHECKPOINT/AGENT."""
    model = Path(config.model.path)
    return Path(config.out) / "eval" / (checkpoint_of(model) or model).name / config.evaluate.agent
