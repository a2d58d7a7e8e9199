"""A method: which columns of the training samples it needs, how they are computed, and how it updates.

    annotate   group ──► reference log-probs; hints ──► teacher log-probs, each trajectory when it can be
    compare    group ──► advantages
    finish     batch ──► a critic's values, returns and advantages, if it has a critic
    update     batch ──► policy loss, the teacher signal's loss, the critic's loss
    sync       new weights ──► teacher; at first also reference policy and critic

It is made of configured parts: `credit`, `feedback`, `signal`, `teacher` and `loss`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from hindsight.cluster.annotation import Annotation, Inquiry
from hindsight.cluster.run import Run
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.controls import Control
from hindsight.feedback.hints import Hints, gather_hints
from hindsight.feedback.judge_client import Answer, Schema, patience
from hindsight.feedback.needs import Needs, hints_need
from hindsight.feedback.reading import Question
from hindsight.feedback.source import make_sources
from hindsight.learner.credit import assign, differ
from hindsight.learner.gae import GaeSettings, estimate, mask_steps
from hindsight.learner.losses import Objective
from hindsight.learner.samples import OpenGroup, SampleGroup, TrainingSample
from hindsight.learner.signals import make_signal
from hindsight.rollout.weights import WeightSet
from hindsight.teacher.contexts import ContextLimits, ScoreRequest, build_requests, plain_requests
from hindsight.teacher.plan import tokens_read
from hindsight.teacher.scorer import Scored


class Method:
    """The configured method, with the actors it asks."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.actors = run, run.config, run.actors
        self.signal, self.control = make_signal(run.config.signal), Control(run.config)
        policy, signal = {"advantages"}, {"teacher_logprobs"}
        if run.config.loss.kl > 0:
            policy.add("reference_logprobs")
        if self.signal.num_candidates:
            signal |= {"candidates", "teacher_candidates"}
        # The columns that each loss needs; a sample without them does not take part in it.
        self.required = {"policy": frozenset(policy), "signal": frozenset(signal)}

    def strength(self, step: int) -> float:
        """λ of the teacher signal after `step` finished training steps."""
        return self.signal.strength(step) if self.config.needs_teacher else 0.0

    def open_group(self, ordinal: int, task: TaskSpec) -> OpenGroup:
        """A group to play; the task's reference solution belongs to it if a feedback source shows that."""
        config = self.config
        return OpenGroup(ordinal, task, config.rollout.group_size, config.feedback.needs_solution)

    def annotation(self, group: OpenGroup, step: int) -> Annotation:
        """What is asked about a group, as soon as enough of it is known: see `inquiries`."""
        return Annotation(group, self.inquiries(step), lambda known: differ(known, self.config.credit))

    async def annotate(self, group: SampleGroup, step: int) -> None:
        """Ask about a whole group at once."""
        self.compare(group)
        for inquiry in self.inquiries(step):
            if group.informative or not inquiry.compares:
                failure = await inquiry.about(group, range(len(group.trajectories)))
                group.failures += [failure] if failure else []

    def compare(self, group: SampleGroup) -> None:
        """Fill in the advantages, if they are known without a critic."""
        if not self.config.credit.critic:
            assign(group, self.config.credit)

    def inquiries(self, step: int) -> list[Inquiry]:
        """What is asked about each group that starts after `step` finished steps.

        If the judge, the teacher or the reference policy fails, the group keeps what is known without it.
        """
        config = self.config
        compares = not config.credit.critic
        weighs = config.loss.policy > 0 and self.strength(step) > 0
        distills = config.signal.loss_weight > 0
        asked = []
        if self.actors.reference is not None:
            asked.append(Inquiry(self._score_reference, "trajectory", compares))
        if weighs or distills:
            asked.append(Inquiry(self._hint_and_score, self.needs(step), compares and self.signal.compares))
        return asked

    def needs(self, step: int) -> Needs:
        """What of a group must be over before the teacher is asked about one of its trajectories.

        A group is scored by one version of the teacher, and its candidates are by one of the learner. So the
        whole group must be over if either may change meanwhile; and for candidates of several ranks, which
        one trajectory would not keep busy.
        """
        config = self.config
        staleness = config.rollout.max_staleness
        in_flight = range(step + 1, step + 1 + staleness)  # steps that may end while the group is played
        candidates = self.signal.num_candidates > 0 and (staleness > 0 or config.learner.ranks > 1)
        controlled = config.feedback.control != "none"  # draws from the hints of the whole group
        if candidates or controlled or any(map(self.syncs_teacher, in_flight)):
            return "group"
        return hints_need([source.needs for source in make_sources(config.feedback)], config.feedback)

    def syncs_teacher(self, step: int) -> bool:
        """Whether the teacher gets the learner's weights at the end of that step."""
        every = self.config.teacher.sync_every
        return every > 0 and step > 0 and step % every == 0

    async def finish(self, batch: Sequence[SampleGroup], step: int) -> None:
        """Fill in what is known when the batch is trained: how far each token's weights lag behind the
        learner's; advantages that the signal computes from whole trajectories; a critic's values, and the
        advantages they give.

        Args:
            step: finished training steps.
        """
        for sample in (sample for group in batch for sample in group.samples):
            sample.lags = self.run.state.version - sample.column("versions")
        critic, credit = self.actors.critic, self.config.credit
        if critic is None:
            for group in batch:
                self.signal.shape_group(group, self.strength(step))
            return
        assert isinstance(credit, GaeSettings)
        self.run.now("asking the critic")
        mask_steps(batch, credit)
        with self.run.recorder.timeline.span(step + 1, "critic", "values"):
            values = await critic.values([one.select("value") for group in batch for one in group.samples])
            estimate(batch, values, credit)

    def losses(self, batch: Sequence[SampleGroup]) -> dict[Objective, list[TrainingSample]]:
        """The samples of each loss of the policy."""
        return {
            "policy": [sample.as_shaped() for sample in self.policy_samples(batch)],
            "signal": [one.select("signal") for group in batch for one in group.samples if self._taught(one)],
        }

    def policy_samples(self, batch: Sequence[SampleGroup]) -> list[TrainingSample]:
        """The samples of the policy loss."""
        groups = [group for group in batch if self.config.loss.policy > 0 and self._learns(group)]
        return [sample for group in groups for sample in group.samples]

    async def update(
        self, batch: Sequence[SampleGroup], step: int, schedule: Callable[[float], float]
    ) -> dict[str, float]:
        """Update the policy, and the critic at the same time; return their statistics.

        Args:
            schedule: maps a peak learning rate to that of this step.
        """
        learner, critic, losses = self.actors.learner, self.actors.critic, self.losses(batch)
        assert learner is not None
        strength, lr = self.strength(step), schedule(self.config.learner.lr)
        updates = {"learner": learner.update(losses, strength, lr)} if any(losses.values()) else {}
        if critic is not None and (values := [one.select("value") for g in batch for one in g.samples]):
            updates["critic"] = critic.fit(values, schedule(critic.peak_lr))
        stats = dict(zip(updates, await asyncio.gather(*updates.values()), strict=True))
        figures = {f"{role}/{name}": value for role, own in stats.items() for name, value in own.items()}
        samples = float(sum(map(len, losses.values())))
        return figures | {"learner/strength": strength, "learner/samples": samples}

    async def sync(
        self, step: int, version: int, export: Callable[[], Awaitable[WeightSet]], everywhere: bool
    ) -> None:
        """Send the learner's new weights to the teacher, if it is due.

        Args:
            step: number of the training step that has just finished; 0: none has.
            export: gives the weights that the engines got.
            everywhere: also to the reference policy and the critic, which start from the same weights.
        """
        config, learner, critic = self.config, self.actors.learner, self.actors.critic
        assert learner is not None
        due = self.syncs_teacher(step)
        names = [name for name in self.actors.scorers() if everywhere or (due and name == "teacher")]
        if not names and not (everywhere and critic):
            return
        weights = await export()
        sent = dict.fromkeys(names, weights)
        if config.averages_adapter and "teacher" in sent:
            share = 1.0 if everywhere else 1.0 - config.teacher.ema_decay
            sent["teacher"] = await learner.export_average(version, share)
        averages = config.teacher.ema_decay > 0 and not config.averages_adapter
        for name, own in sent.items():
            await self.actors.scorers()[name].load_weights(own, everywhere or not averages)
        if everywhere and critic:
            adapted = config.learner.lora.rank > 0
            await critic.load_weights(await learner.export_merged(version) if adapted else weights)

    def must_requeue(self, group: SampleGroup) -> bool:
        """Whether failures left a group too small to learn from, or nothing in it that teaches."""
        config, rollouts = self.config, group.group
        # With a critic, or by distillation, an episode teaches without siblings.
        alone = config.credit.critic or config.signal.loss_weight > 0
        needed = 1 if alone else min(2, config.rollout.group_size)
        if rollouts.failures and len(rollouts.trajectories) < needed:
            return True
        unhinted = config.feedback.needs_solution and not rollouts.reference and bool(rollouts.failures)
        failed = unhinted or len(group.failures) > len(rollouts.failures)
        if not failed or any(map(self._taught, group.samples)):
            return False
        informative = config.credit.critic or group.informative
        complete = all(sample.has(self.required["policy"] - {"advantages"}) for sample in group.samples)
        return config.loss.policy == 0 or (informative and not complete)

    def _learns(self, group: SampleGroup) -> bool:
        """Whether the policy loss learns from a group."""
        return group.informative and all(sample.has(self.required["policy"]) for sample in group.samples)

    def _taught(self, sample: TrainingSample) -> bool:
        """Whether the signal's own loss learns from a sample."""
        return "signal" in sample.masks and sample.has(self.required["signal"])

    async def _score_reference(self, group: SampleGroup, about: Sequence[int]) -> None:
        """Ask the reference policy about everything that was sampled. Writes `reference_logprobs`."""
        requests = plain_requests(group.group, about)
        scored = await self._score("reference", group, requests)
        found = [group.find(request, "response") for request in requests]
        group.put("reference_logprobs", found, [one.logprobs for one in scored])

    async def _gather(self, group: SampleGroup, about: Sequence[int]) -> Hints:
        """The hints of these trajectories' turns, from the group itself or from a judge."""
        judge, watchdog = self.run.judge, self.run.watchdog
        on_engine = self.config.judge.source == "engine"

        async def ask(question: Question, schema: Schema | None = None) -> Answer:
            assert judge is not None
            try:
                async with self.actors.turns.of("engine") if on_engine else nullcontext():
                    return await judge(question, schema)
            finally:
                watchdog.beat("gathering hints")

        began = time.time()
        with watchdog.waiting(patience(self.config.judge) if judge else 0.0):
            hints = await gather_hints(
                group.group,
                self.config.feedback,
                ask if judge else None,
                self.run.renderer.show,
                whole_turns=self.config.signal.tokens == "response",
                about=about,
            )
        hints = replace(hints, texts=self.control.hints(group.group, hints.texts))
        group.failures += hints.failures
        group.count(hints.figures)
        for (trajectory, turn), note in hints.notes.items():
            group.trajectories[trajectory].notes[turn] = note
        if judge is not None:
            group.note("judge", (began, time.time()))
        return hints

    async def _hint_and_score(self, group: SampleGroup, about: Sequence[int]) -> None:
        """Ask the teacher about every turn of these trajectories that has a hint.

        Writes `teacher_logprobs`; if the signal distills also the mask "signal", `candidates` and
        `teacher_candidates`.
        """
        hints = await self._gather(group, about)
        distills = self.config.signal.loss_weight > 0
        tokens, renderer = self.config.signal.tokens, self.run.renderer
        assert self.actors.teacher is not None
        limits = ContextLimits(self.config.feedback.max_tokens, self.actors.teacher.context)
        requests = build_requests(
            group.group,
            hints.texts,
            renderer.close_ids,
            renderer.encode,
            limits,
            opening=self.run.opening,
            tokens=tokens,
        )
        if not requests:
            return
        found = [group.find(request, tokens) for request in requests]
        if distills:
            for sample, where in found:
                sample.mark("signal", where)
            requests = await self._with_candidates(group, requests, found)
        scored = await self._score("teacher", group, requests)
        rollout = [sample.column("rollout_logprobs")[where] for sample, where in found]
        logprobs = self.control.logprobs(group.group, [one.logprobs for one in scored], rollout)
        group.put("teacher_logprobs", found, logprobs)
        for one in requests:
            group.trajectories[one.trajectory].hints[one.turn] = one.tail[: one.hint]
        if distills and self.signal.num_candidates:
            group.put("teacher_candidates", found, [one.candidates for one in scored])
        group.count(
            {
                "teacher/spans": len(requests),
                "teacher/span_tokens": sum(len(request.span) for request in requests),
                "teacher/tokens": tokens_read(requests, self.config.teacher.batch_tokens),
            }
        )

    async def _with_candidates(
        self,
        group: SampleGroup,
        requests: list[ScoreRequest],
        found: Sequence[tuple[TrainingSample, slice]],
    ) -> list[ScoreRequest]:
        """The requests, asking also for the student's most likely tokens there. Writes `candidates`."""
        learner, count = self.actors.learner, self.signal.num_candidates
        if count == 0:
            return requests
        assert learner is not None
        asked = list({id(sample): sample for sample, _ in found}.values())
        answers = await learner.candidates([sample.select("signal") for sample in asked], count)
        for sample, candidates in zip(asked, answers, strict=True):
            sample.put("candidates", sample.masks["signal"], candidates)
        asking = zip(requests, found, strict=True)
        return [
            replace(one, candidates=sample.column("candidates")[where]) for one, (sample, where) in asking
        ]

    async def _score(self, role: str, group: SampleGroup, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """One answer per request, by the teacher or the reference policy."""
        asked = {request.trajectory for request in requests}
        sequences = [
            [sequence.ids for sequence in trajectory.sequences] if index in asked else []
            for index, trajectory in enumerate(group.group.trajectories)
        ]
        what = f"scoring group {group.group.ordinal}"
        answers, worked = await self.actors.scorers()[role].score(sequences, requests, what)
        group.note(role, *worked)
        self.run.watchdog.beat("scoring")
        return answers
