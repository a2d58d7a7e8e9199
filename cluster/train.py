"""The training loop, whatever the method.

    task ──► rollout, annotate ──┐                one coroutine per group, all groups overlap; each
                                 ▼                trajectory is annotated as soon as enough is known
             finish ──► update ──► sync weights   one step per `rollout.num_groups` groups

`rollout.max_staleness = 0` trains synchronously. With S > 0 the loop keeps S more steps of groups in flight
and takes them in the order in which they were started, so no group is more than S weight versions old.
If failures keep a group from training, a group that starts after all others replaces it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hindsight.cluster.evaluate import Evaluation, Stage, numbered, row_of, run_evaluation
from hindsight.cluster.failures import KINDS, Losses
from hindsight.cluster.first_prompts import set_long_ones_aside
from hindsight.cluster.method import Method
from hindsight.cluster.metrics import step_metrics
from hindsight.cluster.publish import Publisher
from hindsight.cluster.report.record import PolicyLoss
from hindsight.cluster.report.run_folder import PHASES
from hindsight.cluster.run import Run
from hindsight.cluster.sft import fine_tune, linear
from hindsight.cluster.watch import together
from hindsight.configs.schema import Config
from hindsight.envs.runtime.remote import AnswerLost
from hindsight.envs.tasks import Panel, TaskSpec
from hindsight.learner.checkpoint import due
from hindsight.learner.rank import RanksLost
from hindsight.learner.samples import OpenGroup, SampleGroup
from hindsight.rollout.types import Failure, Tried
from hindsight.rollout.worker import ask_worker

LOSSES = 3  # how often ranks may be lost at one step; more often is a defect


class Trainer:
    """SFT warm start, RL and evaluation; everything it needs is in `run`."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.actors = run, run.config, run.actors
        self.method = Method(run)
        self.publisher = Publisher(run, self.method)
        self.in_flight: deque[asyncio.Task[SampleGroup]] = deque()
        self.losses: Counter[int] = Counter()  # how often ranks were lost, by finished steps

    async def train(self) -> list[Evaluation]:
        """Run from the current state to `steps`; returns every evaluation.

        Lost ranks are replaced, and the run resumes from its last checkpoint.
        """
        while True:
            try:
                return await self.train_on()
            except RanksLost as error:
                await self.recover(error)

    async def train_on(self) -> list[Evaluation]:
        """Run `train` until it ends or ranks are lost."""
        run, config = self.run, self.config
        run.view.reach(run.state.step, config.steps)
        await together(self.prepare(), set_long_ones_aside(run))
        try:
            run.view.phase("RL", config.steps, run.state.step)
            while run.state.step < config.steps:
                await self.step()
        finally:
            await self.abandon_groups()
        step = run.state.step
        if step and not any(evaluation.step == step for evaluation in run.state.evaluations):
            await run.save()  # before the evaluation, as after the warm start
            await self.evaluate(Stage.AFTER_RL)
            await run.save()
        return run.state.evaluations

    async def prepare(self) -> None:
        """Prepare the first step: run the warm start with its evaluations, or sync the saved weights."""
        run, config = self.run, self.config
        if not run.state.warm_started:
            began = run.state.version > 0  # rewound to the beginning, but scorers have later weights
            # An engine serves all requests with an adapter, or none.
            if config.learner.lora.rank or began:
                await self.sync_weights(everywhere=began)
            await self.warm_start()
        else:
            await self.sync_weights(everywhere=run.state.step == 0)
        if config.sft.demos and not self.evaluated(Stage.AFTER_SFT):
            await self.evaluate(Stage.AFTER_SFT)
            await run.save()
        if await self.evaluate_during():  # the run had ended before this evaluation
            await run.save()

    async def step(self) -> None:
        """Run one training step on a whole batch; see `take_batch`."""
        started, timeline, number = time.monotonic(), self.run.recorder.timeline, self.run.state.step + 1
        batch, lost = await self.take_batch()
        taken = time.monotonic()
        await self.method.finish(batch, self.run.state.step)
        finished = time.monotonic()
        async with self.run.changing():
            self.run.now("updating")
            with timeline.span(number, "learner", "update"):
                learned = await self.method.update(batch, self.run.state.step, self.learning_rate)
            updated = time.monotonic()

            self.run.state.step = number
            played = [trajectory for group in (*batch, *lost) for trajectory in group.group.trajectories]
            self.run.state.turns += sum(len(trajectory.turns) for trajectory in played)
            with timeline.span(number, "weight_sync", "sync"):
                report = await self.publisher.sync(number)
            synced = time.monotonic()
            for group in batch:
                self.run.sampler.mark_trained(group.group.ordinal)

        # Asynchronous rollouts may have ended before the step began.
        rolled_out = max(started, *(group.rolled_out for group in batch))
        phases = zip(PHASES, pairwise((started, rolled_out, taken, finished, updated, synced)), strict=True)
        seconds = {f"time/{phase}": end - begin for phase, (begin, end) in phases}
        figures = learned | seconds | {"time/step": synced - started}
        figures["weight_sync/logprob_gap"] = report.logprob_gap
        await self.record(batch, lost, figures)
        if self.run.state.step < self.config.steps:
            await self.checkpoint_and_evaluate()

    def start_groups(self, taken: int = 0) -> None:
        """Start groups until as many are in flight as the staleness bound and the remaining steps allow.

        Args:
            taken: groups that this step has already taken.
        """
        ahead = min(1 + self.config.rollout.max_staleness, self.config.steps - self.run.state.step)
        while taken + len(self.in_flight) < self.config.rollout.num_groups * ahead:
            ordinal = self.run.sampler.admit()
            producing = self.produce(ordinal, self.run.sampler.task(ordinal), self.run.state.step)
            self.in_flight.append(asyncio.create_task(producing))

    async def produce(self, ordinal: int, task: TaskSpec, step: int) -> SampleGroup:
        """Roll out a group; the method annotates it as of `step` finished steps."""
        began, group = time.time(), self.method.open_group(ordinal, task)
        async with self.method.annotation(group, step) as annotation:
            await self.roll_out(group, annotation.go_on)
            rolled_out, ended = time.monotonic(), time.time()
            whole = await annotation.end()
        self.method.compare(whole)
        whole.rolled_out = rolled_out
        whole.note("rollout", (began, ended))
        return whole

    async def roll_out(self, group: OpenGroup, known: Callable[[], None]) -> None:
        """Run a group's episodes; `known` is called whenever one is over.

        An episode whose result is lost counts as failed.
        """
        rollout = self.config.rollout

        async def play(index: int) -> None:
            asked = (group.ordinal, index, group.task, rollout.temperature, self.config.seed)
            with self.run.view.playing(1):
                group.end(index, await self.ask("play", *asked, task=group.task))
            known()

        async def solve() -> None:
            if group.reference is None:
                group.solve(await self.ask("reference", group.task, task=group.task))
                known()

        async with self.actors.turns.of("engine"):
            await together(*map(play, range(rollout.group_size)), solve())

    async def ask(self, method: str, *args: Any, task: TaskSpec) -> Tried[Any]:
        """Call a method of the worker for a task."""
        what = f"worker.{method} of task {task.id}"
        try:
            tried: Tried[Any] = await ask_worker(self.actors.worker, self.config, method, *args, what=what)
        except AnswerLost as error:
            return Tried(Failure("lost", str(error), task.id))
        self.run.watchdog.beat("rolling out")
        return tried

    async def take_batch(self) -> tuple[list[SampleGroup], list[SampleGroup]]:
        """Take `rollout.num_groups` groups in the order in which they were started; also return lost ones.

        Raises:
            RunError: too many were lost, too many tasks are set aside, or the failure budget is spent.
        """
        run, wanted = self.run, self.config.rollout.num_groups
        batch: list[SampleGroup] = []
        lost: list[SampleGroup] = []
        losses = Losses(wanted, first=run.sampler.trained == 0)
        while len(batch) < wanted:
            self.start_groups(taken=len(batch))
            run.now("rolling out and scoring", len(batch), wanted)
            group = await self.in_flight.popleft()
            if self.method.must_requeue(group):
                lost.append(group)
                run.lose(group.group)
                aside = group.group.task.id in run.set_aside.ids
                losses.add(group.failures, set_aside=aside, taken=len(batch))
            else:
                batch.append(group)
            run.budget.add(run.state.step, self.config.rollout.group_size, group.failures)
        return batch, lost

    async def sync_weights(self, everywhere: bool = False) -> None:
        """Sync weights outside a step; see `Publisher.sync`."""
        async with self.run.changing():
            await self.publisher.sync(everywhere=everywhere)

    async def abandon_groups(self) -> None:
        """Drop the groups in flight."""
        for group in self.in_flight:
            group.cancel()
        await asyncio.gather(*self.in_flight, return_exceptions=True)
        self.in_flight.clear()

    async def recover(self, error: RanksLost) -> None:
        """Start the ranks again and go back to the last checkpoint, or to the beginning.

        Raises:
            RanksLost: it happened more than LOSSES times at this step, or roles take turns on their GPUs.
        """
        run, began = self.run, time.monotonic()
        self.losses[run.state.step] += 1
        if self.actors.turns.wake or self.losses[run.state.step] > LOSSES:
            raise error
        run.view.say(f"learner: {error}")
        groups = self.actors.trained().values()
        async with run.changing():
            for group in groups:
                group.stop()
            run.now("starting the learner again")
            await ask_worker(self.actors.worker, self.config, "abandon", what="ending episodes")
            await asyncio.gather(*(group.start() for group in groups))
            version = run.state.version
            await run.rewind()
            run.state.version = version  # version numbers are never reused
        self.actors.restarts.note("learner", time.monotonic() - began, f"back at step {run.state.step}")

    async def warm_start(self) -> None:
        """Evaluate the untrained model, and fine-tune it on demonstrations, if any; then save step 0."""
        run, config = self.run, self.config
        await self.evaluate(Stage.BEFORE_SFT)
        if config.sft.demos:
            run.view.phase("warm start", None)

            def report(step: int, steps: int, stats: dict[str, float]) -> None:
                run.watchdog.beat(f"warm start, update {step} of {steps}")
                run.view.sft(step, steps, stats)
                run.metrics.write(step, "sft", stats)

            with run.recorder.timeline.span(run.state.step, "learner", "warm start"):
                failures = await fine_tune(
                    config, self.actors, run.renderer, run.manifest.train, run.now, report
                )
            run.budget.add(run.state.step, config.sft.demos, failures)
            await self.sync_weights(everywhere=True)
        run.state.warm_started = True
        if config.sft.demos:
            await run.save()  # before the evaluation, which must not lose it

    async def checkpoint_and_evaluate(self) -> None:
        """Save and evaluate, if it is time."""
        run = self.run
        await run.saver.check()
        saves = due(run.state.step, self.config.checkpoint.every, time.monotonic() - run.saved)
        if saves:
            await run.save()  # before the evaluation, as after the warm start
        if await self.evaluate_during() and saves:
            await run.save()

    async def evaluate_during(self) -> bool:
        """Evaluate in the middle of training, if it is time and has not been done; returns whether it was."""
        step, every = self.run.state.step, self.config.evaluate.every
        wanted = every and 0 < step < self.config.steps and step % every == 0
        if not wanted or any(made.step == step for made in self.run.state.evaluations):
            return False
        await self.evaluate(Stage.DURING_RL)
        return True

    async def evaluate(self, stage: Stage) -> None:
        """Evaluate on every panel (before the warm start, the first) and record the results together."""
        run, settings = self.run, self.config.evaluate
        cold = stage == Stage.BEFORE_SFT
        count = settings.cold_episodes if cold else settings.episodes
        panels = run.panels[:1] if cold else run.panels
        if not count:
            return
        results = [await self.evaluate_on(panel, stage, count) for panel in panels]
        run.state.evaluations += results
        figures = row_of(results) | {"rollout/turns_total": float(run.state.turns)}
        run.metrics.write(run.state.step, "eval", figures, stage, {one.name: one.digest for one in panels})

    async def evaluate_on(self, panel: Panel, stage: Stage, count: int) -> Evaluation:
        """Run the evaluation episodes of a panel, and write them down."""
        run = self.run
        episodes = numbered(panel.tasks, count)
        run.view.say(f"evaluating {len(episodes)} episodes of {panel.name}, {stage}")

        def finished(done: int) -> None:
            run.watchdog.beat("evaluating")
            run.view.advance(done, len(episodes))

        playing = run_evaluation(
            self.config,
            self.actors,
            run.renderer,
            run.manifest.train,
            episodes,
            stage,
            run.state.step,
            finished,
        )
        with run.view.within(f"evaluation {stage}", len(episodes)):
            async with self.actors.turns.of("engine"):
                with (
                    run.watchdog.waiting(self.config.rollout.timeout),
                    run.recorder.timeline.span(run.state.step, "evaluation", stage),
                ):
                    result, plays, failures = await playing
        run.budget.add(run.state.step, len(episodes), failures)
        result = replace(result, panel=panel.name, digest=panel.digest)
        run.recorder.evaluation(run.state.step, stage, plays, "" if panel == run.panels[0] else panel.name)
        run.view.say(str(result))
        return result

    def evaluated(self, stage: Stage) -> bool:
        """Whether this run, or the one it resumes, has made that evaluation."""
        return any(evaluation.stage == stage for evaluation in self.run.state.evaluations)

    async def record(
        self, batch: Sequence[SampleGroup], lost: Sequence[SampleGroup], figures: dict[str, float]
    ) -> None:
        """Write metrics, progress, episodes and tokens of a finished step."""
        run, counts = self.run, self.run.budget.counts
        failures = {"failures/total": counts.total(), "failures/tasks_set_aside": len(run.set_aside.ids)}
        failures |= {f"failures/{kind}": counts[kind] for kind in KINDS}
        off_policy = self.config.rollout.max_staleness > 0
        values = step_metrics(batch, figures, run.state.version - 1, off_policy, lost)
        values |= {**figures, **failures, "rollout/turns_total": float(run.state.turns)}
        values |= self.actors.restarts.metrics()
        run.metrics.write(run.state.step, "train", values)
        run.view.step(run.state.step, self.config, values, batch, run.state.evaluations)
        run.watchdog.beat(f"step {run.state.step} done")
        strength = self.method.strength(run.state.step - 1)
        used = self.method.policy_samples(batch)
        loss = PolicyLoss(used, self.method.signal, strength, self.config.loss.aggregation)
        # In a thread, while the groups in flight continue: for many tokens it takes seconds.
        await asyncio.to_thread(run.recorder.step, run.state.step, batch, lost, loss)

    def learning_rate(self, peak: float) -> float:
        """Learning rate of the coming update."""
        return learning_rate(self.config, self.run.state.step, peak)


def learning_rate(config: Config, step: int, peak: float) -> float:
    """Learning rate after `step` finished steps: linear warm-up to `peak`, then constant or linear to 0."""
    settings = config.learner
    if settings.schedule == "linear":
        return linear(step, config.steps, peak, settings.warmup_steps)
    return peak * min(1.0, (step + 1) / max(1, settings.warmup_steps))
