"""The training loop, whatever the method.

    task ──► rollout ──► annotate ──┐             one coroutine per group, all groups overlap
                                    ▼
             finish ──► update ──► sync weights   one step per `rollout.num_groups` groups

`rollout.max_staleness = 0` trains synchronously. With S > 0 the loop keeps S more steps of groups in flight
and takes them in the order in which they were started, so no group is more than S weight versions old.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from hindsight.cluster.evaluate import Evaluation, Stage, evaluate, numbered
from hindsight.cluster.method import Method
from hindsight.cluster.metrics import step_metrics, write_trajectories
from hindsight.cluster.run import Run
from hindsight.cluster.sft import fine_tune, linear
from hindsight.envs.runtime.remote import AnswerLost, call
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.checkpoint import due
from hindsight.learner.samples import SampleGroup, to_samples
from hindsight.learner.weight_sync import SyncReport, broadcast, sync_weights
from hindsight.rollout.types import Failure, Group


class Trainer:
    """SFT warm start, RL and evaluation; everything it needs is in `run`."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.actors = run, run.config, run.actors
        self.method = Method(run)
        self.in_flight: deque[asyncio.Task[SampleGroup]] = deque()

    async def train(self) -> list[Evaluation]:
        """Run from the current state to `steps`; returns every evaluation."""
        run, config = self.run, self.config
        if not run.state.warm_started:
            if config.learner.lora.rank:
                await self.sync_weights()  # an engine serves all requests with an adapter, or none
            await self.warm_start()
        else:
            await self.sync_weights(everywhere=run.state.step == 0)
        if config.sft.demos and not self.evaluated(Stage.AFTER_SFT):
            await self.evaluate(Stage.AFTER_SFT)
            await run.save()
        try:
            run.view.phase("RL", config.steps, run.state.step)
            while run.state.step < config.steps:
                await self.step()
        finally:
            for group in self.in_flight:
                group.cancel()
        step = run.state.step
        if step and not any(evaluation.step == step for evaluation in run.state.evaluations):
            await run.save()  # before the evaluation, as after the warm start
            await self.evaluate(Stage.AFTER_RL)
            await run.save()
        return run.state.evaluations

    async def step(self) -> None:
        """One training step."""
        started = time.monotonic()
        self.start_groups()
        batch = await self.take_batch()
        taken = time.monotonic()
        await self.method.finish(batch)
        finished = time.monotonic()
        self.run.now("updating")
        learned = await self.method.update(batch, self.run.state.step, self.learning_rate)
        updated = time.monotonic()

        self.run.state.step += 1
        self.run.state.turns += sum(len(t.turns) for group in batch for t in group.group.trajectories)
        report = await self.sync_weights(self.run.state.step)
        synced = time.monotonic()
        self.settle(batch)

        # Asynchronous rollouts may have ended before the step began.
        waited = max(0.0, max(group.rolled_out for group in batch) - started)
        seconds = {
            "time/rollout": waited,
            "time/feedback_and_teacher": taken - started - waited,  # what the rollouts did not hide
            "time/critic": finished - taken,
            "time/learner": updated - finished,
            "time/weight_sync": synced - updated,
            "time/step": synced - started,
        }
        self.record(batch, learned | seconds | {"weight_sync/logprob_gap": report.logprob_gap})
        if self.run.state.step < self.config.steps:
            await self.checkpoint_and_evaluate()

    def start_groups(self) -> None:
        """Start groups until as many are in flight as the staleness bound and the remaining steps allow."""
        ahead = min(1 + self.config.rollout.max_staleness, self.config.steps - self.run.state.step)
        while len(self.in_flight) < self.config.rollout.num_groups * ahead:
            ordinal = self.run.sampler.admit()
            producing = self.produce(ordinal, self.run.sampler.task(ordinal), self.run.state.step)
            self.in_flight.append(asyncio.create_task(producing))

    async def produce(self, ordinal: int, task: TaskSpec, step: int) -> SampleGroup:
        """A group's samples: rolled out, then annotated by the method as of `step` finished steps."""
        group = to_samples(await self.roll_out(ordinal, task))
        group.rolled_out = time.monotonic()
        await self.method.annotate(group, step)
        return group

    async def roll_out(self, ordinal: int, task: TaskSpec) -> Group:
        """A group's episodes; none if their result was lost on the way."""
        config = self.config
        try:
            async with self.actors.turns.of("engine"):
                group: Group = await call(
                    self.actors.worker,
                    "rollout",
                    ordinal,
                    task,
                    config.rollout.group_size,
                    config.rollout.temperature,
                    config.seed,
                    timeout=config.rollout.timeout,
                    setting="rollout.timeout",
                    what=f"rolling out group {ordinal}",
                )
        except AnswerLost as error:
            return Group(ordinal, task, (), failures=(Failure("lost", str(error), task.id),))
        self.run.watchdog.beat("rolling out")
        return group

    async def take_batch(self) -> list[SampleGroup]:
        """The groups of this step, in the order in which they were started."""
        batch: list[SampleGroup] = []
        for index in range(self.config.rollout.num_groups):
            self.run.now("rolling out and scoring", index, self.config.rollout.num_groups)
            batch.append(await self.in_flight.popleft())
        self.run.budget.add(failure for group in batch for failure in group.failures)
        return batch

    def settle(self, batch: Sequence[SampleGroup]) -> None:
        """Mark each group's task as trained, or re-queue it if failures took what it would have taught."""
        for group in batch:
            if self.method.must_requeue(group):
                self.run.sampler.requeue(group.group.ordinal)
            else:
                self.run.sampler.mark_trained(group.group.ordinal)

    async def sync_weights(self, step: int = 0, everywhere: bool = False) -> SyncReport:
        """Send the new weights to every engine, verify them there, and let the method sync its copies.

        Args:
            step: number of the training step that has just finished; 0: none has.
            everywhere: whether all copies start from these weights.
        """
        run, config, engines = self.run, self.config, self.actors.engines
        run.now("syncing weights")
        run.state.version += 1
        version, weights = run.state.version, None
        expected, gap = await self.learner.score(run.canary), config.weight_sync.max_logprob_gap
        canary = (run.canary, expected, gap, config.learner.timeout)
        if config.broadcasts:
            report = await broadcast(engines, self.learner, version, *canary)
        else:
            weights = await self.learner.export(version)
            async with self.actors.turns.of("engine"):
                report = await sync_weights(engines, weights, *canary)
        await self.method.sync(step, version, weights, everywhere)
        return report

    async def warm_start(self) -> None:
        """Evaluate the untrained model, fine-tune it on demonstrations, and save step 0."""
        run, config = self.run, self.config
        await self.evaluate(Stage.BEFORE_SFT)
        if config.sft.demos:
            run.view.phase("warm start", None)

            def report(step: int, steps: int, stats: dict[str, float]) -> None:
                run.watchdog.beat(f"warm start, update {step} of {steps}")
                run.view.sft(step, steps, stats)
                run.metrics.write(step, "sft", stats)

            run.budget.add(
                await fine_tune(config, self.actors, run.renderer, run.manifest.train, run.now, report)
            )
            await self.sync_weights(everywhere=True)
        run.state.warm_started = True
        await run.save()  # before the evaluation, which must not lose it

    async def checkpoint_and_evaluate(self) -> None:
        """Save and evaluate, if it is time."""
        run, every = self.run, self.config.evaluate.every
        saves = due(run.state.step, self.config.checkpoint.every, time.monotonic() - run.saved)
        if saves:
            await run.save()  # before the evaluation, as after the warm start
        if every and run.state.step % every == 0:
            await self.evaluate(Stage.DURING_RL)
            if saves:
                await run.save()

    async def evaluate(self, stage: Stage) -> None:
        """Run the evaluation episodes and record the result."""
        run, settings = self.run, self.config.evaluate
        count = settings.cold_episodes if stage == Stage.BEFORE_SFT else settings.episodes
        episodes = numbered(run.manifest.evaluation, count)
        run.view.say(f"evaluating {len(episodes)} held-out episodes, {stage}")

        def finished(done: int) -> None:
            run.now("evaluating", done, len(episodes))

        playing = evaluate(
            self.config,
            self.actors,
            run.renderer,
            run.manifest.train,
            episodes,
            stage,
            run.state.step,
            finished,
        )
        async with self.actors.turns.of("engine"):
            with run.watchdog.waiting(self.config.rollout.timeout):
                result, trajectories, failures = await playing
        run.budget.add(failures)
        run.state.evaluations.append(result)
        turns = {"rollout/turns_total": float(run.state.turns)}
        run.metrics.write(run.state.step, "eval", result.metrics() | turns)
        name = f"eval-{run.state.step:06d}-{stage.replace(' ', '-')}.jsonl"
        write_trajectories(run.out / "trajectories" / name, trajectories)
        run.view.say(f"{stage}: success {result.success:.1%} ({result.low:.1%} to {result.high:.1%})")

    def evaluated(self, stage: Stage) -> bool:
        """Whether this run, or the one it resumes, has made that evaluation."""
        return any(evaluation.stage == stage for evaluation in self.run.state.evaluations)

    def record(self, batch: Sequence[SampleGroup], figures: dict[str, float]) -> None:
        """Write metrics, progress and trajectories of a finished step."""
        run = self.run
        failures = {"failures/total": float(run.budget.counts.total())}
        values = step_metrics(batch, figures, run.state.version - 1, self.config.rollout.max_staleness > 0)
        values |= {**figures, **failures, "rollout/turns_total": float(run.state.turns)}
        run.metrics.write(run.state.step, "train", values)
        run.view.step(run.state.step, self.config.steps, values)
        run.watchdog.beat(f"step {run.state.step} done")
        trajectories = (trajectory for group in batch for trajectory in group.group.trajectories)
        write_trajectories(run.out / f"trajectories/step-{run.state.step:06d}.jsonl", trajectories)

    def learning_rate(self, peak: float) -> float:
        """Learning rate of the coming update: linear warm-up to `peak`, then constant or linear to 0."""
        settings, step = self.config.learner, self.run.state.step
        if settings.schedule == "linear":
            return linear(step, self.config.steps, peak, settings.warmup_steps)
        return peak * min(1.0, (step + 1) / max(1, settings.warmup_steps))

    @property
    def learner(self) -> Any:
        """The learner; a training run always has one."""
        assert self.actors.learner is not None
        return self.actors.learner
