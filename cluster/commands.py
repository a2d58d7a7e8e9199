"""What the commands do, once the configuration has been checked."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from hindsight.cluster import signals
from hindsight.cluster.evaluate import Evaluation, numbered, row_of, run_evaluation
from hindsight.cluster.failures import FailureBudget, Interrupted, RunError, by_kind, list_failures
from hindsight.cluster.folder import checkpoints, newest_step, sole_writer, storing
from hindsight.cluster.heal import Starts, Watched, keep
from hindsight.cluster.live import report_live
from hindsight.cluster.machines import cluster_nodes, connect
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.planning import plan_run
from hindsight.cluster.prepare import Ready, prepare_run
from hindsight.cluster.report.compare import since_warm_start
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.record import evaluation_rows
from hindsight.cluster.report.run_folder import CONFIG, EPISODES, evaluation_key
from hindsight.cluster.run import Run, open_run
from hindsight.cluster.start import STARTING, Actors, start_actors
from hindsight.cluster.step_report import nothing_trained
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View, cost_lines, draw_curve, evaluation_table
from hindsight.cluster.watch import Watchdog
from hindsight.configs.check import render
from hindsight.configs.schema import Config, Lora
from hindsight.envs.base import EnvError
from hindsight.envs.panels import find_panels
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.remote import RemoteError, call
from hindsight.envs.tasks import Panel, TaskSpec
from hindsight.feedback.anchors import AnchorError
from hindsight.learner.checkpoint import CheckpointError, checkpoint_step, complete, latest
from hindsight.learner.rank import LearnerError, RanksLost
from hindsight.learner.weight_sync import WeightSyncError
from hindsight.rollout.adapter import AdapterError, Saved, read_adapter
from hindsight.rollout.models import ModelMissing, ModelUnfit, resolve
from hindsight.rollout.render import Renderer, load_renderer
from hindsight.rollout.template import TemplateError
from hindsight.rollout.types import EngineError, Failure, Trajectory
from hindsight.rollout.weights import WeightSet, pack_tensors
from hindsight.teacher.plan import BudgetError
from hindsight.teacher.scorer import WeightsError

Evaluated = tuple[Evaluation, list[tuple[Trajectory, ...]], list[Failure]]  # a panel, its plays, what failed


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
        ready = prepare_run(config, view)  # what is wrong without Ray is said before it starts
        async with connected(config, address, view):
            starts = Starts(newest_step(config))
            while True:
                try:
                    await _train(config, view, ready, starts)
                    return
                except (RemoteError, RanksLost) as error:
                    current = asyncio.current_task()
                    signaled = current is not None and current.cancelling()
                    if signaled or not starts.again(error, newest_step(config)):
                        raise
                    view.say(f"{error} Everything starts again from {origin(starts.newest)}.")
                    signals.go_on()
                    config = replace(config, resume="auto")
                    ready = prepare_run(config, view)


def origin(newest: int) -> str:
    """Where a run starts that has a checkpoint of this step, or none."""
    return f"the checkpoint of step {newest}" if newest >= 0 else "the beginning: there is no checkpoint yet"


async def _train(config: Config, view: View, ready: Ready, starts: Starts) -> None:
    """Train with actors of its own, to the closing table.

    Raises:
        RemoteError, RanksLost: something was lost that cannot be replaced alone.
    """
    async with open_run(config, view, ready) as run:
        starts.opened = True
        trainer = Trainer(run)
        guarded = run.watchdog.guard(trainer.train(), trainer.publisher.keep(), report_live(run))
        try:
            print_summary(run, await signals.train_or_save(run, asyncio.create_task(guarded)))
        finally:
            # A checkpoint in flight may take longer than what the end of everything else is given.
            await run.saver.end(None, sys.exc_info()[1])
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
        *since_warm_start(run.out),
        *cost_lines(rows),
        f"model (for transformers and vLLM): {newest / 'model' if newest else 'none'}",
        f"also in {run.out}: curve.png, metrics.jsonl, trajectories/, tokens/, config.yaml, log.txt",
        *run.config.env.caveats,
    ]
    if failures := list_failures(run.budget.counts):
        lines.append(f"failures (never counted as rewards): {failures}")
    if replaced := list_failures(run.actors.restarts.counts):
        lines.append(f"processes that were lost and replaced: {replaced}")
    if aside := run.set_aside.entries:
        lines.append(f"tasks set aside (delete their lines in {run.set_aside.file} to lift them):")
        lines += [f"  {one}" for one in aside]
    for line in lines:
        view.show(line)


async def eval_run(config: Config, user_model: str, address: str | None = None) -> None:
    """`hindsight eval`: evaluate one checkpoint on `evaluate.panels`, without learner and teacher.

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
        panels = find_panels(family, manifest, config.evaluate.panels)
        total = config.evaluate.episodes * len(panels)
        view.say(f"evaluating {config.model.path}, {config.evaluate.agent}: {total} episodes")
        for line in (*panels, *config.env.caveats):
            view.say(str(line))
        async with connected(config, address, view):
            # Merging would lose the adapter to rounding, so it is served on its base model.
            adapter = read_adapter(model)
            lora, base = (adapter.settings, str(adapter.base)) if adapter else (Lora(), str(model))
            served = replace(config, learner=replace(config.learner, lora=lora))
            nodes = await cluster_nodes(config.cluster.start_timeout)
            plan = plan_run(served, nodes, base, learner=False, teacher=False)
            view.plan(plan)
            view.phase("starting actors")
            actors = await start_actors(plan, base, family, view.starting, user_model=user_model)
            actors.restarts.say = view.say
            bring = _serving(adapter, config)
            await asyncio.gather(*map(bring, actors.engines))
            watched = [Watched("engine", engine, partial(bring, engine)) for engine in actors.engines]
            keeping = keep([*watched, *actors.stateless], actors.restarts, config.cluster.start_timeout)
            watchdog = Watchdog(config.cluster.stall_timeout)

            def played(done: int) -> None:
                watchdog.beat("evaluating")
                view.advance(done, total)

            view.phase("evaluating", total)
            playing = play_panels(plan.config, actors, renderer, manifest.train, panels, played)
            with watchdog.waiting(config.rollout.timeout):
                evaluated = await watchdog.guard(playing, keeping)
            results = [result for result, _, _ in evaluated]
            view.show(evaluation_table(results))
            write_evaluation(folder, config, manifest.digest, results, [plays for _, plays, _ in evaluated])
            view.say(f"settings, metrics and trajectories are in {folder}")
            if failures := [failure for _, _, own in evaluated for failure in own]:
                missing = sum(result.missing for result in results)
                view.say(
                    f"failures: {list_failures(by_kind(failures))}; {missing} of {total} episodes are missing"
                )
            FailureBudget(config.failure_budget).add(0, total, failures)
            await actors.stop()


async def play_panels(
    config: Config,
    actors: Actors,
    renderer: Renderer,
    train: Sequence[TaskSpec],
    panels: Sequence[Panel],
    played: Callable[[int], None],
) -> list[Evaluated]:
    """Evaluate the engines' model on one panel after the other.

    Args:
        played: called with the number of finished episodes of all panels.
    """
    found: list[Evaluated] = []
    step, each = evaluated_step(Path(config.model.path)), config.evaluate.episodes
    for panel in panels:
        before = len(found) * each
        episodes = numbered(panel.tasks, each)
        told = (config.evaluate.agent, step, partial(_further, played, before))
        result, plays, failures = await run_evaluation(config, actors, renderer, train, episodes, *told)
        found.append((replace(result, panel=panel.name, digest=panel.digest), plays, failures))
    return found


def _further(played: Callable[[int], None], before: int, done: int) -> None:
    played(before + done)


def write_evaluation(
    folder: Path,
    config: Config,
    digest: str,
    results: Sequence[Evaluation],
    plays: Sequence[Iterable[Sequence[Trajectory]]],
) -> None:
    """Write what a run's folder has of an evaluation, and of what it is: evaluation.json.

    Args:
        digest: of training tasks and the panel `evaluation`.
        results: of each panel.
        plays: of each panel.
    """
    panels = {result.panel: result.digest for result in results}
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(render(config))
    named = {"checkpoint": config.model.path, "agent": config.evaluate.agent}
    about = {**named, "tasks": digest, "panels": panels}
    (folder / "evaluation.json").write_text(json.dumps(about, indent=1) + "\n")
    metrics = Metrics(folder, config.tracker)
    metrics.start()
    metrics.write(results[0].step, "eval", row_of(results), results[0].stage, panels)
    metrics.close()
    for place, (result, own) in enumerate(zip(results, plays, strict=True)):
        key = evaluation_key(result.step, result.stage, result.panel if place else "")
        write_rows(folder / EPISODES / f"{key}.jsonl", evaluation_rows(own))


def _serving(adapter: Saved | None, config: Config) -> Callable[[Any], Awaitable[None]]:
    """What makes an engine serve the model that is evaluated: its base, or the adapter on it."""
    limit: dict[str, Any] = {"timeout": config.cluster.start_timeout, "setting": STARTING}
    if adapter is None:
        return partial(call, method="serve", **limit)
    flat, layout, checksum = pack_tensors(adapter.tensors.items())
    weights = WeightSet(1, layout, checksum, ray.put(flat))

    async def load(engine: Any) -> None:
        if (await call(engine, "stats", **limit))["version"] == weights.version:
            return
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
    return run if (run / CONFIG).is_file() else None


def evaluated_step(model: Path) -> int:
    """Finished training steps of a model; 0 if it is no checkpoint's."""
    checkpoint = checkpoint_of(model)
    return checkpoint_step(checkpoint) if checkpoint and checkpoint in complete(checkpoint.parent) else 0


def evaluation_folder(config: Config) -> Path:
    """Where `hindsight eval` writes: `out`/eval/CHECKPOINT/AGENT."""
    model = Path(config.model.path)
    return Path(config.out) / "eval" / (checkpoint_of(model) or model).name / config.evaluate.agent
