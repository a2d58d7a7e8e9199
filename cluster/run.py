"""One run: its configuration, folder, tasks and actors, and the state that checkpoints restore."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from hindsight.cluster.evaluate import Evaluation
from hindsight.cluster.failures import FailureBudget, RunError
from hindsight.cluster.machines import cluster_nodes
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.planning import plan_run
from hindsight.cluster.start import Actors, start_actors
from hindsight.cluster.task_sampler import TaskSampler
from hindsight.cluster.view import View
from hindsight.cluster.watch import Watchdog
from hindsight.configs.check import differences, render
from hindsight.configs.schema import Config
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.files import atomic_write
from hindsight.envs.tasks import Manifest
from hindsight.feedback.judge_client import JudgeClient, open_judge
from hindsight.learner.checkpoint import latest, require_room, step_of, writing
from hindsight.rollout.models import resolve
from hindsight.rollout.render import Renderer, load_renderer
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
    sampler: TaskSampler
    renderer: Renderer
    opening: np.ndarray | None  # ids that open a second user message (feedback.placement=message)
    judge: JudgeClient | None  # writes hints, if a model does
    canary: np.ndarray  # (L,) int32 prompt whose log-probs must agree between copies of the weights
    actors: Actors
    metrics: Metrics
    view: View
    watchdog: Watchdog
    budget: FailureBudget
    state: State

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Report progress to the display and the watchdog."""
        self.watchdog.beat(doing)
        self.view.now(doing, done, total)

    async def save(self) -> None:
        """Write an atomic checkpoint: learner, critic, teacher, driver state, and a model for other tools.

        A step has one checkpoint; where it is there already, what has been measured since is added.
        """
        learner, critic = self.actors.learner, self.actors.critic
        assert learner is not None
        newest = latest(checkpoints(self.config))
        if newest is not None and step_of(newest) == self.state.step:
            atomic_write(newest / "driver.json", self._driver_state(), durable=True)
            return
        self.now("saving a checkpoint")
        root, keep = checkpoints(self.config), self.config.checkpoint.keep
        with (
            self.watchdog.waiting(self.config.learner.timeout),
            writing(root, self.state.step, keep, self.actors.checkpoint_bytes) as folder,
        ):
            await learner.save(folder)
            if critic is not None:
                await critic.save(folder)
            await learner.save_model(folder / "model")
            for name, scorer in self.actors.scorers().items():
                await scorer.save(folder / f"{name}.safetensors")
            (folder / "driver.json").write_text(self._driver_state())

    async def restore(self, folder: Path) -> None:
        """Restore a checkpoint; the next batch is the one that would have followed it."""
        learner, critic = self.actors.learner, self.actors.critic
        assert learner is not None
        saved = json.loads((folder / "driver.json").read_text())
        if saved["tasks"] != self.manifest.digest:
            raise RunError(
                f"{folder} belongs to other tasks (digest {saved['tasks']}, now {self.manifest.digest}). "
                "Use the same env settings, or set another `out`."
            )
        started = saved["step"] > 0  # at step 0 the scorers equal the student, and the critic is untrained
        scorers = self.actors.scorers() if started else {}
        critic = critic if started else None
        held = {name: folder / f"{name}.safetensors" for name in scorers}
        for name, place in (held | ({"critic": folder / "critic"} if critic else {})).items():
            if not place.exists():
                raise RunError(
                    f"{folder} has no {name}. Keep the method and its settings, "
                    "or start a new run with another `out`."
                )
        await learner.load(folder)
        if critic is not None:
            await critic.load(folder)
        for name, scorer in scorers.items():
            await scorer.load(held[name])
        evaluations = [Evaluation(**values) for values in saved["evaluations"]]
        self.state = State(
            saved["step"],
            saved["version"],
            saved["warm_started"],
            turns=saved.get("turns", 0),  # missing in old checkpoints
            evaluations=evaluations,
        )
        self.budget.counts.update(saved["failures"])  # they count for the whole run, resumes included
        self.sampler.restore(saved.get("sampler") or saved["ledger"])  # its name in version 0.1.0
        self.metrics.truncate(self.state.step)

    def _driver_state(self) -> str:
        state = {
            **{name: getattr(self.state, name) for name in ("step", "version", "warm_started", "turns")},
            "evaluations": [asdict(evaluation) for evaluation in self.state.evaluations],
            "sampler": self.sampler.state(),
            "tasks": self.manifest.digest,
            "failures": dict(self.budget.counts),
            "dtype": self.config.model.dtype,
            "learner": {name: getattr(self.config.learner, name) for name in ("ranks", "zero_stage")},
        }
        return json.dumps(state, indent=1)


def start_judge(config: Config, renderer: Renderer, actors: Actors) -> JudgeClient | None:
    """Return the judge; None if no model writes hints."""
    if not config.feedback.judged:
        return None
    limit = (config.judge.timeout, "judge.timeout")
    engines = [generate_on(engine, index, *limit) for index, engine in enumerate(actors.engines)]
    return open_judge(config.judge, Path(config.out) / "judge", renderer, engines)


def checkpoints(config: Config) -> Path:
    """Folder of the run's checkpoints."""
    return Path(config.out) / "checkpoints"


def open_folder(config: Config) -> Path | None:
    """Create the run's folder; return the checkpoint to resume from, if any.

    Raises:
        RunError: the folder holds another run and `resume` is not set: nothing is overwritten.
    """
    out = Path(config.out)
    newest = latest(checkpoints(config))
    if newest is not None and config.resume == "never":
        raise RunError(
            f"{out} already holds a run (newest checkpoint: {newest.name}). "
            "Resume it with resume=auto, or choose another folder with out=…"
        )
    out.mkdir(parents=True, exist_ok=True)
    return newest


def continued(config: Config, newest: Path | None) -> Config:
    """`config` with what the checkpoint was planned with, as far as the plan may choose: DeepSpeed loads its
    state into as many ranks of the same ZeRO stage only.
    """
    if newest is None:
        return config
    saved, learner, model = json.loads((newest / "driver.json").read_text()), config.learner, config.model
    before = saved.get("learner", {"ranks": 1, "zero_stage": 1})  # version 0.1.0 did not write these defaults
    stage = before["zero_stage"] if learner.zero_stage is None else learner.zero_stage
    dtype = saved.get("dtype", model.dtype) if model.dtype == "auto" else model.dtype
    return replace(
        config,
        model=replace(model, dtype=dtype),
        learner=replace(learner, ranks=learner.ranks or before["ranks"], zero_stage=stage),
    )


async def require_storage(config: Config, actors: Actors) -> None:
    """Check, before hours are spent, that every rank can write its part of a checkpoint, and that it fits.

    Raises:
        RunError: a rank's node does not share the run's folder.
        CheckpointError: there is too little room.
    """
    folder = checkpoints(config)
    folder.mkdir(exist_ok=True)
    require_room(folder, actors.checkpoint_bytes)
    marker = folder / ".seen"
    marker.touch()
    try:
        blind = await actors.learner.blind(marker) if actors.learner else []
    finally:
        marker.unlink()
    if blind:
        raise RunError(
            f"out = {config.out!r} is on this node alone: the learner ranks on {', '.join(blind)} do not see "
            "it, and their part of each checkpoint would be lost. Set `out` to a folder that all nodes share"
        )


def announce(run: Run, newest: Path, asked: Config) -> None:
    """Say where a run resumes, and which settings have changed since."""
    left = "" if run.state.step < asked.steps else "; raise steps to train on"
    run.view.say(f"resuming from {newest} after step {run.state.step} of {asked.steps}{left}")
    before = run.out / "config.yaml"
    for difference in differences(before.read_text(), asked) if before.exists() else ():
        run.view.say(f"  {difference}")


@asynccontextmanager
async def open_run(config: Config, view: View) -> AsyncIterator[Run]:
    """Open tasks and actors, restore the newest checkpoint if `resume=auto`, and close everything at the end.

    Raises:
        RunError, CheckpointError: it cannot start; nothing that existed has been changed.
    """
    newest = open_folder(config)
    asked = config  # what the plan decides is not written to config.yaml: another machine decides anew
    view.say(f"output directory: {config.out}")
    view.say("preparing the model and the tasks")
    model = resolve(config.model.path)
    renderer = load_renderer(str(model), config)
    opening = renderer.second_message() if config.feedback.placement == "message" else None
    family = make_family(config.env)
    manifest = family.manifest()
    view.say(
        f"{len(manifest.train)} training tasks, {len(manifest.evaluation)} held out, digest {manifest.digest}"
    )
    for caveat in config.env.caveats:
        view.say(caveat)
    plan = plan_run(continued(config, newest), cluster_nodes(), str(model))
    config = plan.config
    view.plan(plan)
    view.phase("starting actors", None)
    async with AsyncExitStack() as stack:
        actors = await start_actors(plan, str(model), family)
        stack.push_async_callback(actors.stop)
        if newest is None:  # left by a run without a checkpoint
            for stale in ("metrics.jsonl", "curve.png"):
                Path(config.out, stale).unlink(missing_ok=True)
        metrics = Metrics(Path(config.out), config.tracker)
        stack.callback(metrics.close)
        judge = start_judge(config, renderer, actors) if config.needs_teacher else None
        if judge is not None:
            stack.push_async_callback(judge.close)
        await require_storage(config, actors)
        run = Run(
            config=config,
            out=Path(config.out),
            model=model,
            manifest=manifest,
            sampler=TaskSampler(manifest.train, config.seed),
            renderer=renderer,
            opening=opening,
            judge=judge,
            canary=renderer.encode(renderer.rules()),
            actors=actors,
            metrics=metrics,
            view=view,
            watchdog=Watchdog(config.cluster.stall_timeout),
            budget=FailureBudget(config.failure_budget),
            state=State(),
        )
        if newest is not None:
            await run.restore(newest)
            announce(run, newest, asked)
        (run.out / "config.yaml").write_text(render(asked))
        yield run
