"""What the commands do, once the configuration has been checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from hindsight.cluster.evaluate import Evaluation, evaluate, numbered
from hindsight.cluster.failures import FailureBudget, RunError
from hindsight.cluster.machines import cluster_nodes, connect
from hindsight.cluster.metrics import Metrics, write_trajectories
from hindsight.cluster.planning import plan_run
from hindsight.cluster.run import Run, checkpoints, open_run
from hindsight.cluster.start import STARTING, start_actors
from hindsight.cluster.train import Trainer
from hindsight.cluster.view import View, cost_lines, draw_curve, evaluation_table
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config, Lora
from hindsight.envs.base import EnvError
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.remote import RemoteError, call
from hindsight.learner.checkpoint import CheckpointError, latest
from hindsight.learner.rank import LearnerError
from hindsight.learner.weight_sync import WeightSyncError
from hindsight.rollout.adapter import AdapterError, read
from hindsight.rollout.episode import PromptTooLong
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
        PromptTooLong,
        TemplateError,
    )


async def train_run(config: Config, address: str | None = None) -> None:
    """`hindsight train`: from a recipe to the closing table."""
    with View() as view:
        dashboard = connect(address, config.cluster.dashboard_port)
        view.say(f"Ray dashboard: {dashboard}" if dashboard else "Ray has no dashboard")
        try:
            async with open_run(config, view) as run:
                evaluations = await run.watchdog.guard(Trainer(run).train())
                print_summary(run, evaluations)
        finally:
            ray.shutdown()


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
    failures = ", ".join(f"{kind} {count}" for kind, count in run.budget.counts.items())
    if failures:
        console.print(f"infrastructure failures (never counted as rewards): {failures}", highlight=False)


async def eval_run(config: Config, user_model: str, address: str | None = None) -> None:
    """`hindsight eval`: run the evaluation split with one checkpoint, without learner and teacher.

    Results go to `out`/eval/AGENT, apart from what a training run writes.
    """
    with View() as view:
        connect(address, config.cluster.dashboard_port)
        try:
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
            if adapter:
                flat, layout = pack(adapter.tensors.items())
                weights = WeightSet(1, layout, checksum(flat, layout), ray.put(flat))
                limit: dict[str, Any] = {"timeout": config.cluster.start_timeout, "setting": STARTING}
                loading = [
                    call(engine, "load_weights", weights, what="loading the adapter", **limit)
                    for engine in actors.engines
                ]
                await asyncio.gather(*loading)
            watchdog = Watchdog(config.cluster.stall_timeout)
            episodes = numbered(manifest.evaluation, config.evaluate.episodes)

            def played(done: int) -> None:
                watchdog.beat("evaluating")
                view.now("evaluating", done, len(episodes))

            stage = f"{config.model.path}, {config.evaluate.agent}"
            playing = evaluate(plan.config, actors, renderer, manifest.train, episodes, stage, 0, played)
            with watchdog.waiting(config.rollout.timeout):
                result, trajectories, failures = await watchdog.guard(playing)
            FailureBudget(config.failure_budget).add(failures)
            view.console.print(evaluation_table([result]))
            folder = Path(config.out) / "eval" / config.evaluate.agent
            metrics = Metrics(folder)
            metrics.write(0, "eval", result.metrics())
            metrics.close()
            write_trajectories(folder / "trajectories.jsonl", trajectories)
            view.say(f"metrics and trajectories are in {folder}")
            await actors.stop()
        finally:
            ray.shutdown()


def find_model(folder: Path) -> Path | None:
    """Find the model in a model folder, a checkpoint folder or a run's folder (its newest checkpoint)."""
    newest = sorted(folder.glob("checkpoints/*/model/config.json"))[-1:]
    for candidate in (folder / "config.json", folder / "model" / "config.json", *newest):
        if candidate.is_file():
            return candidate.parent
    return None
