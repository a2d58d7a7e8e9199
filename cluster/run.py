"""One run: its configuration, folder, tasks and actors, and the state that checkpoints restore."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.cluster.evaluate import Evaluation
from hindsight.cluster.failures import FailureBudget, own_fault, typical
from hindsight.cluster.folder import checkpoints, open_folder
from hindsight.cluster.machines import cluster_nodes
from hindsight.cluster.metrics import Metrics, TrackerError
from hindsight.cluster.planning import plan_run
from hindsight.cluster.prepare import Ready, continued, prepare_run, require_same_run
from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.provenance import record_start
from hindsight.cluster.report.recorder import Recorder
from hindsight.cluster.report.run_folder import CONFIG, FAILURES, METRICS
from hindsight.cluster.saver import Saver, require_storage
from hindsight.cluster.set_aside import SetAside, SetAsideTasks, now
from hindsight.cluster.start import Actors, start_actors
from hindsight.cluster.task_sampler import TaskSampler
from hindsight.cluster.view import View
from hindsight.cluster.watch import Watchdog
from hindsight.configs.check import changed_settings, render
from hindsight.configs.schema import Config
from hindsight.envs.tasks import Manifest, Panel
from hindsight.feedback.judge_client import JudgeClient, open_judge
from hindsight.learner.checkpoint import checkpoint_step, latest, read_state, write_state
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Group
from hindsight.rollout.worker import generate_on


@dataclass
class State:
    """Progress of the run, saved with every checkpoint."""

    step: int = 0  # finished training steps
    version: int = 0  # version of the newest weights on the engines
    warm_started: bool = False
    turns: int = 0  # of all training episodes so far
    evaluations: list[Evaluation] = field(default_factory=list)


@dataclass
class Run:
    """Everything the trainer needs, opened once."""

    config: Config
    out: Path
    model: Path
    manifest: Manifest
    panels: tuple[Panel, ...]  # that are evaluated
    sampler: TaskSampler
    renderer: Renderer
    opening: np.ndarray | None  # ids that open a second user message (feedback.placement=message)
    judge: JudgeClient | None  # writes hints, if a model does
    canary: np.ndarray  # (L,) int32 prompt whose log-probs must agree between copies of the weights
    actors: Actors
    metrics: Metrics
    recorder: Recorder
    view: View
    watchdog: Watchdog
    saver: Saver
    budget: FailureBudget
    set_aside: SetAsideTasks
    state: State
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by `changing` and `save`
    intact: bool = True  # False in the middle of a change, and after one that failed
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was, or the start

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """A block that changes weights and state together: no checkpoint is made of its middle."""
        async with self.changes:
            self.intact = False
            yield
            self.intact = True

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Report progress to the display and the watchdog."""
        self.watchdog.beat(doing)
        self.view.now(doing, done, total)

    def lose(self, group: Group) -> None:
        """Re-queue a group that failures kept from training, or set its task aside.

        Raises:
            RunError: too many tasks are set aside.
        """
        most = own_fault(group)
        if not self.sampler.requeue(group.ordinal, most):
            return
        assert most is not None
        last = typical(group.failures)
        entry = SetAside(group.task.id, last.kind, last.message, most, self.state.step, now())
        self.view.say(f"set aside: task {entry}. To lift it, delete its line in {self.set_aside.file}")
        self.set_aside.add(entry)

    async def save(self) -> None:
        """Write an atomic checkpoint: learner, critic, teacher, driver state, and a model for other tools.

        A step has one checkpoint; where it is there already, what has been measured since is added. This may
        return when a copy is made (`Saver.write`).

        Raises:
            CheckpointError: it, or the one before, cannot be written; the previous one is the latest.
        """
        async with self.changes:
            await self._save()

    async def save_rest(self) -> str:
        """Save the last finished step if it has no checkpoint; say what was done. Hold `changes`."""
        await self.saver.settle()
        newest = latest(checkpoints(self.config))
        saved = checkpoint_step(newest) if newest else None
        if not self.intact:
            return (
                f"no checkpoint of a change that failed; the last one is {newest.name if newest else 'none'}"
            )
        if not self.state.warm_started:
            return "no checkpoint: the warm start had not ended, and starts again"
        if not self.state.step and not self.config.sft.demos:
            return "no checkpoint: no step had been trained"
        if saved != self.state.step:
            await self._save(beside=False)  # it takes less time in all
        return f"step {self.state.step} is saved"

    async def _save(self, beside: bool = True) -> None:
        await self.saver.settle()
        newest = latest(checkpoints(self.config))
        if newest is not None and checkpoint_step(newest) == self.state.step:
            write_state(newest, self._driver_state())
            return
        self.now("saving a checkpoint")
        await self.saver.write(self.state.step, self._driver_state(), beside)
        self.saved = time.monotonic()

    async def rewind(self) -> None:
        """Go back to the newest checkpoint, or else to the beginning; in a block of `changing`."""
        await self.saver.settle()
        again = replace(self.config, resume="auto")
        newest = await asyncio.to_thread(open_folder, again, self.view.say)
        if newest is not None:
            await self.restore(newest)
            return
        fresh = TaskSampler(self.manifest.train, self.config.seed, self.set_aside.ids)
        self.state, self.sampler = State(), fresh
        self.budget.restore(Counter())
        self.metrics.clear()
        self.recorder.truncate(-1)

    async def restore(self, folder: Path) -> None:
        """Restore a checkpoint; the next batch is the one that would have followed it."""
        learner, critic = self.actors.learner, self.actors.critic
        assert learner is not None
        saved = read_state(folder)
        require_same_run(self.config, folder, self.manifest)
        await learner.load(folder)
        if saved["step"] > 0:  # at step 0 the scorers equal the student, and the critic is untrained
            if critic is not None:
                await critic.load(folder)
            for name, scorer in self.actors.scorers().items():
                await scorer.load(folder / f"{name}.safetensors")
        evaluations = [Evaluation(**values) for values in saved["evaluations"]]
        self.state = State(
            saved["step"],
            saved["version"],
            saved["warm_started"],
            turns=saved["turns"],
            evaluations=evaluations,
        )
        self.budget.restore(Counter(saved["failures"]))
        self.sampler.restore(saved["sampler"])
        made = {(evaluation.step, evaluation.stage) for evaluation in evaluations}
        self.metrics.truncate(self.state.step, made)
        self.recorder.truncate(self.state.step, made)
        self.set_aside.write()

    def _driver_state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self.state, name) for name in ("step", "version", "warm_started", "turns")},
            "evaluations": [asdict(evaluation) for evaluation in self.state.evaluations],
            "sampler": self.sampler.state(),
            "tasks": self.manifest.digest,
            "failures": dict(self.budget.counts),
            "dtype": self.config.model.dtype,
        }


def start_judge(config: Config, renderer: Renderer, actors: Actors) -> JudgeClient | None:
    """Return the judge; None if no model writes hints."""
    if not config.feedback.judged:
        return None
    limit = (config.judge.timeout, "judge.timeout")
    engines = [generate_on(engine, index, *limit) for index, engine in enumerate(actors.engines)]
    return open_judge(config.judge, Path(config.out) / "judge", renderer, engines)


def announce(run: Run, newest: Path, asked: Config) -> None:
    """Say where a run resumes, and which settings have changed since."""
    left = "" if run.state.step < asked.steps else "; raise steps to train on"
    run.view.say(f"resuming from {newest} after step {run.state.step} of {asked.steps}{left}")
    before = run.out / CONFIG
    for difference in changed_settings(before.read_text(), asked) if before.exists() else ():
        run.view.say(f"  {difference}")


def open_record(config: Config, renderer: Renderer, resumes: bool) -> tuple[Metrics, Recorder]:
    """Open what writes down the run, without what a run that left no checkpoint has written."""
    out = Path(config.out)
    recorder = Recorder(out, Pieces(renderer.token_bytes))
    if not resumes:
        recorder.truncate(-1)
        for name in (METRICS, FAILURES, "curve.png"):
            (out / name).unlink(missing_ok=True)
    return Metrics(out, config.tracker), recorder


def close_metrics(metrics: Metrics, view: View, _: object, error: BaseException | None, *__: object) -> None:
    """Close the trackers.

    If the run already failed, a tracker error is only logged, so that it does not hide the first error.
    """
    try:
        metrics.close()
    except TrackerError as failed:
        if error is None:
            raise
        view.say(str(failed))


def digests(panels: Iterable[Panel]) -> dict[str, str]:
    """The panels' digests by name."""
    return {panel.name: panel.digest for panel in panels}


@asynccontextmanager
async def open_run(config: Config, view: View, ready: Ready | None = None) -> AsyncIterator[Run]:
    """Start the actors, restore the newest checkpoint if `resume=auto`, and close everything at the end.

    Args:
        ready: what `prepare_run` has returned for `config`; by default it is called.

    Raises:
        RunError, CheckpointError: it cannot start; nothing that existed has been changed.
    """
    ready = ready or prepare_run(config, view)
    newest, model, renderer, manifest, set_aside = (
        ready.newest, ready.model, ready.renderer, ready.manifest, ready.set_aside
    )  # fmt: skip
    asked = config  # what the plan decides is not written to config.yaml: another machine decides anew
    nodes = await cluster_nodes(asked.cluster.start_timeout)
    plan = plan_run(continued(asked, newest), nodes, str(model))
    config = plan.config
    view.plan(plan)
    view.phase("starting actors")
    async with AsyncExitStack() as stack:
        actors = await start_actors(plan, str(model), ready.family, view.starting)
        stack.push_async_callback(actors.stop)
        actors.restarts.say = view.say
        metrics, recorder = open_record(config, renderer, resumes=newest is not None)
        stack.push(partial(close_metrics, metrics, view))
        judge = start_judge(config, renderer, actors) if config.needs_teacher else None
        if judge is not None:
            stack.push_async_callback(judge.close)
        await require_storage(config, actors)
        watchdog = Watchdog(config.cluster.stall_timeout)
        saver = Saver(config, actors, recorder.timeline, view, watchdog)
        run = Run(
            config=config,
            out=Path(config.out),
            model=model,
            manifest=manifest,
            panels=ready.panels,
            sampler=TaskSampler(manifest.train, config.seed, set_aside.ids),
            renderer=renderer,
            opening=renderer.second_message() if config.feedback.placement == "message" else None,
            judge=judge,
            canary=renderer.encode(renderer.rules()),
            actors=actors,
            metrics=metrics,
            recorder=recorder,
            view=view,
            watchdog=watchdog,
            saver=saver,
            budget=FailureBudget(config.failure_budget, config.rollout.episodes, set_aside.ids),
            set_aside=set_aside,
            state=State(),
        )
        stack.push_async_exit(saver.end)
        if newest is not None:
            await run.restore(newest)
            announce(run, newest, asked)
        (run.out / CONFIG).write_text(render(asked))
        metrics.start()
        with record_start(run.out, run.state.step if newest else None, digests(run.panels)):
            yield run
