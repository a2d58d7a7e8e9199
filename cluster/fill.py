"""From a task to a group that can be trained on: rollout, feedback, teacher."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ray.exceptions import RayError

from hindsight.cluster.run import Run
from hindsight.cluster.watch import Deadline, Unreachable, reason, within
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.hints import Hints, gather_hints
from hindsight.feedback.judge_client import Answer, Schema, patience
from hindsight.feedback.reading import Question
from hindsight.learner.credit import informative
from hindsight.learner.distill_rows import distill_rows, plain_rows, with_candidates
from hindsight.learner.rows import Row
from hindsight.rollout.types import Failure, Group, TurnAt
from hindsight.teacher.contexts import ContextLimits, ScoreRequest, build_requests, plain_requests
from hindsight.teacher.plan import tokens_read
from hindsight.teacher.scorer import Scored


@dataclass(frozen=True)
class Filled:
    """A group, ready to be trained on."""

    ordinal: int
    group: Group
    rolled_out: float  # time.monotonic() when its last episode ended
    failures: tuple[Failure, ...]
    hints: Hints = field(default_factory=Hints)
    scores: Mapping[TurnAt, np.ndarray] = field(default_factory=dict)  # the teacher's log-probs of its span
    reference: Mapping[TurnAt, np.ndarray] = field(default_factory=dict)  # the reference's, of all of it
    distill: Sequence[Row] = ()  # rows of the distillation loss
    teacher_seconds: float = 0.0  # in which it was asked and had not answered
    teacher_spans: int = 0
    teacher_tokens: int = 0  # that the teacher read: contexts and spans, what they share once
    teacher_span_tokens: int = 0  # of them, those scored


class Filler:
    """Fills groups, many at once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.actors = run.actors
        self.free: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by role

    async def fill(self, ordinal: int, task: TaskSpec, strength: float) -> Filled:
        """One group end to end.

        It trains without the hindsight that a judge or teacher failed to give; without its reference policy,
        whose KL penalty it would escape, it does not train the policy loss.

        Args:
            strength: λ of the step; 0 asks no teacher for weights.

        Raises:
            ActorLost: an actor has died; without it no later step could be trained or saved.
        """
        group = await self.roll_out(ordinal, task)
        filled = Filled(ordinal, group, time.monotonic(), group.failures)
        teaches = informative(group, self.config.credit)
        distills = self.config.distill.weight > 0
        weighs = teaches and strength > 0
        if not (distills or weighs or self.actors.reference):
            return filled
        try:
            if self.actors.reference is not None and teaches:
                filled = replace(filled, reference=await self.refer(group))
            if distills or weighs:
                known = await self.look_back(group, distills)
                filled = replace(filled, hints=known, failures=(*filled.failures, *known.failures))
                filled = await (self.teach if distills else self.weigh)(filled)
        except (RayError, Deadline, Unreachable) as error:  # RayError: what the actor itself raised
            lost = Failure("teacher", reason(error), task.id)
            filled = replace(filled, failures=(*filled.failures, lost))
        return filled

    async def roll_out(self, ordinal: int, task: TaskSpec) -> Group:
        """The group's episodes."""
        config, workers = self.config, self.actors.workers
        call = workers[ordinal % len(workers)].rollout.remote(
            ordinal, task, config.rollout.group_size, config.rollout.temperature, config.seed
        )
        limit = config.rollout.timeout
        with self.run.watchdog.waiting(limit):
            group: Group = await within(limit, "rollout.timeout", f"rolling out group {ordinal}", call)
        self.run.watchdog.beat("rolling out")
        return group

    async def look_back(self, group: Group, distills: bool) -> Hints:
        """The texts that the teacher will see, from the group itself or from a judge."""
        judge, watchdog = self.run.judge, self.run.watchdog

        async def ask(question: Question, schema: Schema | None = None) -> Answer:
            assert judge is not None
            try:
                return await judge(question, schema)
            finally:
                watchdog.beat("gathering hindsight")

        with watchdog.waiting(patience(self.config.judge) if judge else 0.0):
            return await gather_hints(
                group,
                self.config.feedback,
                ask if judge else None,
                self.run.renderer.show,
                whole_turns=distills or self.config.reweight.tokens == "response",
            )

    async def weigh(self, filled: Filled) -> Filled:
        """The teacher's log-probs of what was done, for the weights of SERL and RLSD."""
        requests = self.requests(filled, self.config.reweight.tokens)
        scored, seconds = await self.score("teacher", filled.group, requests)
        scores = {(r.trajectory, r.turn): s.logprobs for r, s in zip(requests, scored, strict=True)}
        return replace(filled, scores=scores, **self.cost(requests, seconds))

    async def teach(self, filled: Filled) -> Filled:
        """Student and teacher on the tokens of every turn that has hindsight, for distillation."""
        group, distill = filled.group, self.config.distill
        requests = self.requests(filled, "response")
        if not requests:
            return filled
        rows = plain_rows(group, requests)
        if distill.divergence != "sampled":
            assert self.actors.learner is not None
            with self.run.watchdog.waiting(self.config.learner.timeout):
                found = await self.actors.learner.candidates(list(rows.values()), distill.top_k)
            rows = {
                owner: replace(row, candidates=candidates)
                for (owner, row), candidates in zip(rows.items(), found, strict=True)
            }
            requests = with_candidates(group, requests, rows)
        scored, seconds = await self.score("teacher", group, requests)
        made = distill_rows(group, requests, scored, rows)
        return replace(filled, distill=made, **self.cost(requests, seconds))

    async def refer(self, group: Group) -> dict[TurnAt, np.ndarray]:
        """The reference policy's log-probs of everything that was sampled."""
        requests = plain_requests(group)
        scored, _ = await self.score("reference", group, requests)
        return {(r.trajectory, r.turn): s.logprobs for r, s in zip(requests, scored, strict=True)}

    def requests(self, filled: Filled, tokens: str) -> list[ScoreRequest]:
        """What to ask the teacher: the chosen tokens of every turn that has a text."""
        renderer, config = self.run.renderer, self.config
        limits = ContextLimits(config.feedback.max_tokens, self.actors.teacher_context)
        return build_requests(
            filled.group,
            filled.hints.texts,
            renderer.close_ids,
            renderer.encode,
            limits,
            opening=self.run.opening,
            tokens=tokens,
        )

    def cost(self, requests: Sequence[ScoreRequest], seconds: float) -> dict[str, Any]:
        """What these requests took, as fields of `Filled`."""
        return {
            "teacher_seconds": seconds,
            "teacher_spans": len(requests),
            "teacher_tokens": tokens_read(requests, self.config.teacher.batch_tokens),
            "teacher_span_tokens": sum(len(request.span) for request in requests),
        }

    async def score(
        self, role: str, group: Group, requests: Sequence[ScoreRequest]
    ) -> tuple[list[Scored], float]:
        """One answer per request, by the teacher or the reference, and the seconds that it took them."""
        sequences = [[sequence.ids for sequence in t.sequences] for t in group.trajectories]
        limit = self.config.teacher.timeout
        async with self.free[role]:  # else the deadline would run while other groups are scored
            started = time.monotonic()
            with self.run.watchdog.waiting(limit):
                call = self.actors.scorers()[role].score.remote(sequences, requests)
                what = f"scoring group {group.ordinal}"
                scored: list[Scored] = await within(limit, "teacher.timeout", what, call)
            seconds = time.monotonic() - started
        self.run.watchdog.beat("scoring")
        return scored, seconds


def hindsight_metrics(filled: Sequence[Filled]) -> dict[str, float]:
    """What the hindsight of one step's groups came to, and what it cost."""
    known = [one.hints for one in filled]
    values: dict[str, Iterable[float]] = {
        "feedback/texts": (len(one.texts) for one in known),
        "feedback/asked": (one.asked for one in known),
        "feedback/unreadable": (one.unreadable for one in known),
        "feedback/tokens_read": (one.tokens_read for one in known),
        "feedback/tokens_written": (one.tokens_written for one in known),
        "teacher/spans": (one.teacher_spans for one in filled),
        "teacher/tokens": (one.teacher_tokens for one in filled),
        "teacher/span_tokens": (one.teacher_span_tokens for one in filled),
        "teacher/seconds_busy": (one.teacher_seconds for one in filled),
    }
    return {name: float(sum(parts)) for name, parts in values.items()}
