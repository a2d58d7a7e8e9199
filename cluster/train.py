"""The driver: one loop, whatever the method.

    admit ─► fill (one group, overlapping all others) ─► take ─► rows ─► update ─► publish ─► release
               rollout → feedback → teacher                    critic   critic

`max_staleness = 0` is synchronous training; with S > 0 the loop keeps S more steps of groups in flight and
takes them in the order of their admission, so that no group is ever more than S weight versions old.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from hindsight.cluster.evaluate import Evaluation, evaluate, panel
from hindsight.cluster.fill import Filled, Filler, hindsight_metrics
from hindsight.cluster.metrics import rollout_metrics, write_trajectories
from hindsight.cluster.run import Run
from hindsight.cluster.sft import imitate, linear
from hindsight.cluster.watch import within
from hindsight.learner.credit import informative
from hindsight.learner.reweight import strength_at
from hindsight.learner.rows import Advantages, Row, make_rows
from hindsight.learner.value_rows import estimate, value_rows
from hindsight.learner.weight_sync import SyncReport, broadcast, sync_weights
from hindsight.rollout.types import Group
from hindsight.rollout.weights import WeightSet


class Trainer:
    """Warm start, reinforcement, evaluation; everything it needs is in `run`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.actors = run.actors
        self.filler = Filler(run)
        self.in_flight: deque[tuple[int, asyncio.Task[Filled]]] = deque()

    async def train(self) -> list[Evaluation]:
        """The whole run, from where it stands to `steps`; returns every evaluation made."""
        run, config = self.run, self.config
        if not run.state.warm_started:
            if config.learner.lora.rank:
                await (
                    self.sync_weights()
                )  # an engine has requests with an adapter or without, never both at once
            await self.warm_start()
        else:
            await self.sync_weights(refresh=run.state.step == 0)
        if config.sft.demos and not self.measured("after warm start"):
            await self.evaluate("after warm start")
            await run.save()
        try:
            run.view.phase("reinforcement", config.steps, run.state.step)
            while run.state.step < config.steps:
                await self.step()
        finally:
            for _, task in self.in_flight:
                task.cancel()
        step = run.state.step
        if step and not any(evaluation.step == step for evaluation in run.state.evaluations):
            await run.save()  # before it is measured, as after the warm start
            await self.evaluate("after reinforcement")
            await run.save()
        return run.state.evaluations

    async def warm_start(self) -> None:
        """Evaluate cold, imitate, and checkpoint as step 0."""
        run, config = self.run, self.config
        await self.evaluate("before warm start")
        if config.sft.demos:
            run.view.phase("warm start", None)

            def report(step: int, steps: int, stats: dict[str, float]) -> None:
                run.watchdog.beat(f"warm start, update {step} of {steps}")
                run.view.sft(step, steps, stats)
                run.metrics.write(step, "sft", stats)

            with run.watchdog.waiting(max(config.rollout.timeout, config.learner.timeout)):
                run.budget.add(
                    await imitate(config, self.actors, run.renderer, run.manifest.train, run.now, report)
                )
            await self.sync_weights(refresh=True)
        run.state.warm_started = True
        await run.save()  # before it is measured: it must not be lost to what comes next

    async def step(self) -> None:
        """One training step: the loop of the picture above, once."""
        run, config = self.run, self.config
        strength = strength_at(run.state.step, config.reweight) if config.feedback.on else 0.0
        started = time.monotonic()
        self.admit(strength)
        filled = []
        for index in range(config.rollout.num_groups):
            run.now("rolling out and scoring", index, config.rollout.num_groups)
            filled.append(await self.in_flight.popleft()[1])
        run.budget.add(failure for one in filled for failure in one.failures)
        rolled_out, scored = max(one.rolled_out for one in filled), time.monotonic()

        groups = [one.group for one in filled]
        learned = await self.learn(filled, strength)
        updated = time.monotonic()

        run.state.step += 1
        run.state.turns += sum(len(t.turns) for group in groups for t in group.trajectories)
        refresh = config.teacher.sync_every > 0 and run.state.step % config.teacher.sync_every == 0
        report = await self.sync_weights(refresh)
        published = time.monotonic()
        for one in filled:
            self.release(one)

        waited = max(0.0, rolled_out - started)  # asynchronous rollouts may have ended before the step began
        ahead = config.rollout.max_staleness > 0
        values = rollout_metrics(groups, published - started if ahead else waited, run.state.version - 1) | {
            **learned,
            "learner/strength": strength,
            **hindsight_metrics(filled),
            "rollout/turns_total": float(run.state.turns),
            "weight_sync/logprob_gap": report.logprob_gap,
            "failures/total": float(run.budget.counts.total()),
            "failures/retried": float(sum(len(group.retried) for group in groups)),  # of this step
            "time/rollout": waited,
            "time/feedback_and_teacher": scored - started - waited,  # what the rollouts did not hide
            "time/learner": updated - scored - learned.get("time/critic", 0.0),
            "time/weight_sync": published - updated,
            "time/step": published - started,
        }
        self.record(groups, values)
        if run.state.step < config.steps:
            await self.checkpoint_and_evaluate()

    async def checkpoint_and_evaluate(self) -> None:
        """What is due between two steps."""
        run, every = self.run, self.config.evaluate.every
        saves = run.state.step % self.config.checkpoint.every == 0
        if saves:
            await run.save()  # before it is measured, as after the warm start
        if every and run.state.step % every == 0:
            await self.evaluate("during reinforcement")
            if saves:
                await run.save()

    def admit(self, strength: float) -> None:
        """Start groups until as many are in flight as the staleness bound and the steps left allow."""
        ahead = min(1 + self.config.rollout.max_staleness, self.config.steps - self.run.state.step)
        while len(self.in_flight) < self.config.rollout.num_groups * ahead:
            ordinal = self.run.sampler.admit()
            fill = self.filler.fill(ordinal, self.run.sampler.task(ordinal), strength)
            self.in_flight.append((ordinal, asyncio.create_task(fill)))

    async def learn(self, filled: Sequence[Filled], strength: float) -> dict[str, float]:
        """Update the learner, and the critic beside it; returns what both say of it."""
        run, critic = self.run, self.actors.critic
        started = time.monotonic()
        taught, estimated = await self.estimate([one.group for one in filled])
        figures = {"time/critic": time.monotonic() - started} if critic is not None else {}
        rows = self.rows(filled, estimated)
        run.now("updating")
        with run.watchdog.waiting(self.config.learner.timeout):
            learning, fitting = await asyncio.gather(self.update(rows, strength), self.fit_critic(taught))
        figures |= {f"learner/{name}": value for name, value in learning.items()}
        figures |= {f"critic/{name}": value for name, value in fitting.items()}
        return figures | {"learner/rows": float(sum(map(len, rows.values())))}

    async def update(self, rows: dict[str, list[Row]], strength: float) -> dict[str, float]:
        """The learner's step, by objective; none where no group has anything to teach."""
        if not any(rows.values()):
            return {}
        return await self.learner.update(rows, strength, self.warmed(self.config.learner.lr))

    async def fit_critic(self, rows: list[Row]) -> dict[str, float]:
        """The critic's step, where there is a critic and something for it to learn."""
        critic = self.actors.critic
        return await critic.fit(rows, self.warmed(self.config.critic.lr)) if critic and rows else {}

    async def estimate(self, groups: Sequence[Group]) -> tuple[list[Row], Advantages | None]:
        """What the critic is to learn, and the advantages that its values give; None without a critic."""
        if self.actors.critic is None:
            return [], None
        self.run.now("asking the critic")
        rows = value_rows(groups, self.config.credit)
        with self.run.watchdog.waiting(self.config.learner.timeout):
            values = await self.actors.critic.values(list(rows.values()))
        return estimate(groups, rows, values, self.config.credit)

    def rows(self, filled: Sequence[Filled], estimated: Advantages | None) -> dict[str, list[Row]]:
        """What the learner trains on, by objective. `estimated`: advantages by a critic, if there is one."""
        config = self.config
        scores = {(one.ordinal, *turn): values for one in filled for turn, values in one.scores.items()}
        reference = {(one.ordinal, *turn): values for one in filled for turn, values in one.reference.items()}
        penalized = config.loss.kl > 0
        groups = [one.group for one in filled if config.loss.policy > 0 and (one.reference or not penalized)]
        return {
            "policy": make_rows(
                groups,
                scores,
                config.credit,
                config.reweight.tokens,
                reference if config.loss.kl > 0 else None,
                estimated,
            ),
            "distill": [row for one in filled for row in one.distill],
        }

    def release(self, filled: Filled) -> None:
        """Close the books on a group. One that infrastructure kept from teaching comes again."""
        if self.failed(filled):
            self.run.sampler.requeue(filled.ordinal)
        else:
            self.run.sampler.mark_trained(filled.ordinal)

    def failed(self, filled: Filled) -> bool:
        """Whether failures left a group too small to learn from, or took all that it would have been
        trained on."""
        config, group = self.config, filled.group
        # With a critic or by distillation an episode teaches without siblings.
        alone = config.credit.critic or config.distill.weight > 0
        wanted = 1 if alone else min(2, config.rollout.group_size)
        if group.failures and len(group.trajectories) < wanted:
            return True
        if len(filled.failures) == len(group.failures) or filled.distill:
            return False
        escapes = config.loss.kl > 0 and informative(group, config.credit) and not filled.reference
        return config.loss.policy == 0 or escapes

    async def sync_weights(self, refresh: bool = False) -> SyncReport:
        """New weights to every engine, verified; and, where it is due, to those that follow the student."""
        run, config, engines = self.run, self.config, self.actors.engines
        run.now("publishing weights")
        run.state.version += 1
        version, weights = run.state.version, None
        expected, gap = await self.learner.score(run.canary), config.weight_sync.max_logprob_gap
        canary = (run.canary, expected, gap, config.learner.timeout)
        if config.broadcasts:
            report = await broadcast(engines, self.learner, version, *canary)
        else:
            weights = await self.learner.export(version)
            report = await sync_weights(engines, weights, *canary)
        if refresh:
            await self.refresh(weights)
        return report

    async def refresh(self, weights: WeightSet | None) -> None:
        """To the teacher; and once, after the warm start, to reference and critic: all begin alike.

        Args:
            weights: as they were exported for the engines; None where they were broadcast.
        """
        config, version, first = self.config, self.run.state.version, self.run.state.step == 0
        names = [name for name in self.actors.scorers() if first or name == "teacher"]
        if not names and (self.actors.critic is None or not first):
            return
        weights = weights or await self.learner.export(version)
        given = dict.fromkeys(names, weights)
        if config.averages_adapter and "teacher" in given:
            share = 1.0 if first else 1.0 - config.teacher.ema_decay
            given["teacher"] = await self.learner.export_average(version, share)
        for name, own in given.items():
            loading = self.actors.scorers()[name].load_weights.remote(own, whole=first)
            await within(config.teacher.timeout, "teacher.timeout", f"refreshing the {name}", loading)
        if first and self.actors.critic is not None:
            adapted = config.learner.lora.rank > 0
            whole = await self.learner.export_merged(version) if adapted else weights
            await self.actors.critic.load_weights(whole)

    async def evaluate(self, stage: str) -> None:
        """Play the held-out panel and write down what came of it."""
        run = self.run
        settings, cold = self.config.evaluate, stage == "before warm start"
        episodes = panel(run.manifest.evaluation, settings.cold_episodes if cold else settings.episodes)
        run.view.say(f"evaluating {len(episodes)} held-out episodes, {stage}")

        def played(done: int) -> None:
            run.now("evaluating", done, len(episodes))

        with run.watchdog.waiting(self.config.rollout.timeout):
            result, trajectories, failures = await evaluate(
                self.config,
                self.actors,
                run.renderer,
                run.manifest.train,
                episodes,
                stage,
                run.state.step,
                played,
            )
        run.budget.add(failures)
        run.state.evaluations.append(result)
        turns = {"rollout/turns_total": float(run.state.turns)}
        run.metrics.write(run.state.step, "eval", result.metrics() | turns)
        name = f"eval-{run.state.step:06d}-{stage.replace(' ', '-')}.jsonl"
        write_trajectories(run.out / "trajectories" / name, trajectories)
        run.view.say(f"{stage}: success {result.success:.1%} ({result.low:.1%} to {result.high:.1%})")

    def measured(self, stage: str) -> bool:
        """Whether that evaluation has been made, in this run or the one it goes on from."""
        return any(evaluation.stage == stage for evaluation in self.run.state.evaluations)

    def record(self, groups: list[Group], values: dict[str, float]) -> None:
        """Metrics, progress and trajectories of a finished step."""
        run = self.run
        run.metrics.write(run.state.step, "train", values)
        run.view.step(run.state.step, self.config.steps, values)
        run.watchdog.beat(f"step {run.state.step} done")
        trajectories = (trajectory for group in groups for trajectory in group.trajectories)
        write_trajectories(run.out / f"trajectories/step-{run.state.step:06d}.jsonl", trajectories)

    def warmed(self, peak: float) -> float:
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
