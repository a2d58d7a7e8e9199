"""Computes the recorded figures with today's code: recorded groups through the real `Method`.

What runs elsewhere (engines, teacher, reference policy, critic, judge) is a pure function of token ids
(`figure_fakes`); the judge gives the recorded answers. Names in the output are those of the recording.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import figure_fakes as fakes
import numpy as np
from figure_losses import by_turn, learn, whose

from hindsight.cluster.method import Method
from hindsight.cluster.turns import Turns
from hindsight.configs.schema import Config
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.learner.gae import fit
from hindsight.learner.samples import SampleGroup, TrainingSample, to_samples
from hindsight.rollout.types import Failure, Group, Span, TokenSequence, Trajectory, Turn
from hindsight.teacher.scorer import Scored

COLUMNS = {  # of the samples of a loss, by their names in the recording
    "policy": {
        "advantage": "advantages",
        "teacher": "teacher_logprobs",
        "reference": "reference_logprobs",
        "rollout": "rollout_logprobs",
    },
    "distil": {
        "teacher": "teacher_logprobs",
        "candidates": "candidates",
        "teacher_candidates": "teacher_candidates",
    },
    "value": {"value": "values", "return": "returns"},
}


def rebuild(record: dict[str, Any]) -> Group:
    """The group of a record."""
    task = TaskSpec(**record["task"])
    trajectories = tuple(_trajectory(task, one) for one in record["trajectories"])
    failures, retried = (tuple(Failure(**one) for one in record[name]) for name in ("failures", "retried"))
    return Group(record["ordinal"], task, trajectories, failures, retried, tuple(record["reference"]))


def _trajectory(task: TaskSpec, record: dict[str, Any]) -> Trajectory:
    sequences = tuple(
        TokenSequence(
            np.array(one["ids"], np.int32),
            np.array(one["logprobs"], np.float64).astype(np.float32),
            np.zeros(len(one["ids"]), np.int32),
        )
        for one in record["sequences"]
    )
    turns = tuple(map(_turn, record["turns"]))
    ending = (record["success"], record["reward"], record["ended"], record["preamble"])
    return Trajectory(task, sequences, turns, *ending)


def _turn(record: dict[str, Any]) -> Turn:
    result = record["result"] | {"observation": _observation(record["result"]["observation"])}
    span = record["action_span"] and Span(*record["action_span"])
    changed = {"action_span": span, "result": StepResult(**result)}
    made = record | changed | {"observation": _observation(record["observation"])}
    return Turn(**{name: value for name, value in made.items() if name != "weight_version"})


def _observation(record: dict[str, Any]) -> Observation:
    return Observation(**record | {"actions": tuple(record["actions"])})


class Recorder:
    """A run as far as `Method` asks it: its actors answer at once, and note what they were asked."""

    def __init__(self, config: Config, records: list[dict[str, Any]]) -> None:
        self.config, self.actors = config, self
        self.records = {str(record["ordinal"]): record for record in records}
        self.requests: dict[str, list[Any]] = {}
        self.questions: dict[str, str] = {}
        self.renderer = SimpleNamespace(
            close_ids=np.array(fakes.CLOSE_IDS, np.int32),
            encode=fakes.encode,
            show=lambda seen: fakes.shown(seen.text, seen.actions),
        )
        second = config.feedback.placement == "message"
        self.opening = np.array(fakes.SECOND_MESSAGE, np.int32) if second else None
        self.watchdog = SimpleNamespace(waiting=lambda seconds: nullcontext(), beat=lambda doing: None)
        self.judge = self._judge if config.feedback.judged else None
        self.teacher = SimpleNamespace(context=fakes.TEACHER_CONTEXT)
        self.turns = Turns()
        self.state = SimpleNamespace(version=0)
        self.recorder = SimpleNamespace(timeline=SimpleNamespace(span=lambda *_: nullcontext()))
        self.reference = self if config.loss.kl > 0 else None
        self.learner = self
        self.critic = self if config.credit.critic else None

    def now(self, doing: str) -> None:
        """Progress is not shown."""

    def scorers(self) -> dict[str, Any]:
        """Teacher and reference policy."""

        def scorer(role: str) -> Any:
            async def score(sequences: Any, requests: Any, what: str) -> tuple[list[Scored], list[Any]]:
                self.requests[role] = list(requests)
                return [_scored(role, sequences[r.trajectory][r.sequence], r) for r in requests], []

            return SimpleNamespace(score=score)

        return {role: scorer(role) for role in ("teacher", "reference")}

    async def candidates(self, samples: list[TrainingSample], k: int) -> list[np.ndarray]:
        """The student's most likely tokens."""
        return [fakes.likeliest(sample.ids, sample.positions, k) for sample in samples]

    async def values(self, samples: list[TrainingSample]) -> list[np.ndarray]:
        """The critic's values."""
        return [fakes.critic(sample.ids, sample.positions) for sample in samples]

    async def _judge(self, question: Any, schema: Any = None) -> Answer:
        words = question.write(self.config.judge.characters)
        ordinal, index = re.search(r"Log (\d+)-(\d+)\.", words).groups()
        self.questions[index] = hashlib.sha256(words.encode()).hexdigest()[:16]
        answer = self.records[ordinal]["trajectories"][int(index)]["answers"][
            self.config.feedback.sources[-1]
        ]
        if answer is None:
            raise JudgeError("gone")
        return Answer(answer)


def _scored(role: str, ids: np.ndarray, request: Any) -> Scored:
    context = np.concatenate([ids[: request.cut], request.tail])
    start, end = request.cut + request.span.start, request.cut + request.span.end
    wanted = np.zeros((end - start, 0), np.int32) if request.candidates is None else request.candidates
    others = fakes.score_candidates(role, context, range(start, end), wanted)
    return Scored(fakes.score(role, context, start, end), others)


def compute_step(config: Config, records: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """One training step over all groups after `step` finished ones: hints, columns, losses and gradients."""
    run = Recorder(config, records)
    method: Any = Method(run)
    groups = [rebuild(record) for record in records]
    hints, batch = {}, []
    for group in groups:
        made = to_samples(group)
        run.requests, run.questions, method.texts = {}, {}, {}
        asyncio.run(_annotate(method, made, step))
        hints[str(group.ordinal)] = _hints(method, made, run)
        batch.append(made)
    asyncio.run(method.finish(batch, step))
    losses = method.losses(batch)
    if (
        config.signal.loss_weight
    ):  # the recording kept what the teacher says from the policy loss, which ignores it
        losses["policy"] = [replace(one, teacher_logprobs=None) for one in losses["policy"]]
    samples = {"policy": losses["policy"], "distil": losses["signal"]}
    if run.critic:
        samples["value"] = [one.select("value") for group in batch for one in group.samples]
    samples = {name: own for name, own in samples.items() if own}
    where, strength = whose(groups), method.strength(step)
    inputs: dict[str, Any] = {name: {} for name in samples}
    for name, own in samples.items():
        for sample in own:
            held = {key: getattr(sample, column) for key, column in COLUMNS[name].items()}
            if name == "policy" and held["teacher"] is None:
                held["teacher"] = np.full(len(sample.positions), np.nan)
            by_turn(inputs[name], [sample], {k: v for k, v in held.items() if v is not None}, where)
    stages = {
        stage: {name: learn(config, name, own, strength, later, where) for name, own in samples.items()}
        for stage, later in (("first", False), ("later", True))
    }
    for stage in stages.values():
        stage["loss"] = sum(stage[name]["loss"] for name in ("policy", "distil") if name in stage)
    fitted = {"fit": fit(samples["value"])} if "value" in samples else {}
    return {"strength": strength, "hindsight": hints, "inputs": inputs, "stages": stages, **fitted}


async def _annotate(method: Any, group: SampleGroup, step: int) -> None:
    """`Method.annotate`, keeping the texts that the teacher is shown."""
    gather = type(method)._gather

    async def keep(one: SampleGroup, about: Any) -> Any:
        hints = await gather(method, one, about)
        method.texts = hints.texts
        return hints

    method._gather = keep
    await method.annotate(group, step)


def _hints(method: Any, group: SampleGroup, run: Recorder) -> dict[str, Any]:
    """Texts and requests of one group, as recorded."""
    failures = group.failures[len(group.group.failures) :]
    return {
        "texts": {f"{index}/{number}": text for (index, number), text in method.texts.items()},
        "failures": [failure.kind for failure in failures],
        "asked": group.figures.get("feedback/asked", 0),
        "unreadable": group.figures.get("feedback/unreadable", 0),
        "questions": dict(sorted(run.questions.items())),
        "requests": [_request(request) for request in run.requests.get("teacher", [])],
        "reference_requests": [_request(request) for request in run.requests.get("reference", [])],
    }


def _request(request: Any) -> list[Any]:
    digest = hashlib.sha256(request.tail.astype("<i4").tobytes()).hexdigest()[:16]
    place = [request.trajectory, request.turn, request.sequence, request.cut]
    return [*place, len(request.tail), digest, request.span.start, request.span.end]
