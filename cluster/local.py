"""A run's actors as objects in this process, for `hindsight replay` and `probe`: no Ray, no engines."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from hindsight.cluster.failures import RunError
from hindsight.cluster.run import State
from hindsight.cluster.turns import Turns
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config
from hindsight.feedback.judge_client import Answer, JudgeClient, JudgeEndpoint, JudgeError, Schema
from hindsight.feedback.reading import Question
from hindsight.learner.group import LearnerGroup
from hindsight.learner.plain import PlainRank
from hindsight.rollout.models import resolve
from hindsight.rollout.render import Renderer, load_renderer
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.pool import Worked
from hindsight.teacher.scorer import Scored, TeacherScorer


class ReplayError(RunError):
    """The step cannot be replayed; the message says why, and what to do."""


class LocalLearner(LearnerGroup):
    """The learner's one rank, in this process."""

    async def start(self) -> dict[str, float]:
        rank = PlainRank(self.config, self.model, 0)
        self.alone = bool(rank.start()[2])
        self.ranks = [rank]
        return {}

    def call(self, actor: Any, method: str, *args: Any, **limit: Any) -> Coroutine[Any, Any, Any]:
        async def answer() -> Any:
            return getattr(actor, method)(*args)

        return answer()


class LocalScorer:
    """The teacher or the reference policy, in this process; as `teacher.pool.ScorerPool`."""

    def __init__(self, scorer: TeacherScorer) -> None:
        self.scorer, self.context = scorer, scorer.ready()["context"]

    async def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest], what: str
    ) -> tuple[list[Scored], list[Worked]]:
        """One answer per request, in order, and when it worked."""
        began = time.time()
        return self.scorer.score(sequences, requests), [(began, time.time())]


@dataclass
class LocalActors:
    """What a method asks of `cluster.start.Actors`."""

    teacher: LocalScorer | None
    reference: LocalScorer | None
    learner: LocalLearner | None = None
    critic: None = None
    turns: Turns = field(default_factory=Turns)

    def scorers(self) -> dict[str, LocalScorer]:
        """The scorers that there are, by role."""
        both = {"teacher": self.teacher, "reference": self.reference}
        return {role: scorer for role, scorer in both.items() if scorer is not None}

    async def open_learner(self, config: Config, model: str, start: Path | None) -> None:
        """Load the learner with the state of a checkpoint."""
        self.learner = LocalLearner(config, model)
        await self.learner.start()
        if start is not None:
            await self.learner.load(start)


@dataclass
class LocalRun:
    """What a method asks of `cluster.run.Run`."""

    config: Config
    model: str
    actors: LocalActors
    renderer: Renderer
    opening: np.ndarray | None
    judge: JudgeClient | None
    state: State
    watchdog: Watchdog

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Progress is not shown."""


def open_local(config: Config, start: Path | None, judge: JudgeClient | None, version: int) -> LocalRun:
    """Load the scorers that the method asks.

    Args:
        start: the checkpoint whose weights they have; None: the model's own.
        version: of the learner's weights.
    """
    model = str(resolve(config.model.path))
    renderer = load_renderer(model, config)
    teacher = _scorer("teacher", config, model, start) if config.needs_teacher else None
    reference = _scorer("reference", config, model, start) if config.needs_reference else None
    return LocalRun(
        config,
        model,
        LocalActors(teacher, reference),
        renderer,
        renderer.second_message() if config.feedback.placement == "message" else None,
        judge,
        State(version=version),
        Watchdog(config.cluster.stall_timeout),
    )


def _scorer(role: str, config: Config, model: str, start: Path | None) -> LocalScorer:
    """A scorer with its weights in the checkpoint, or else the student's: another method had no such role."""
    saved = start / f"{role}.safetensors" if start else None
    share = 1.0 - config.teacher.ema_decay if role == "teacher" else 1.0
    if start and saved and not saved.exists():
        return LocalScorer(TeacherScorer(str(start / "model"), config, config.temperatures[role], share))
    scorer = TeacherScorer(model, config, config.temperatures[role], share)
    if saved:
        scorer.load(str(saved))
    return LocalScorer(scorer)


class NoJudge:
    """Answers no question: only recorded answers are at hand."""

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        raise JudgeError(
            "the run's judge folder has no answer to this question, and there is no judge to ask"
        )

    async def close(self) -> None:
        """Do nothing."""


@contextmanager
def recorded_judge(config: Config, path: Path) -> Iterator[JudgeClient | None]:
    """The run's recorded answers; a question without one goes to the endpoint, if its key is set.

    Raises:
        ReplayError: there are neither answers nor an endpoint.
    """
    if not (config.feedback.judged and config.needs_teacher):
        yield None
        return
    settings, answers = config.judge, path / "judge"
    there = settings.source == "endpoint" and bool(os.environ.get(settings.api_key_env))
    if not there and (settings.source == "engine" or not answers.is_dir()):
        raise ReplayError(
            f"feedback.sources = {config.feedback.sources} needs a judge. There are no engines here, and "
            f"{path} has no recorded answers: set judge.source=endpoint, judge.url and judge.model, and "
            f"export the variable {settings.api_key_env} (judge.api_key_env)"
        )
    with tempfile.TemporaryDirectory() as scratch:  # new answers are not written into the run's folder
        if answers.is_dir():
            shutil.copytree(answers, scratch, dirs_exist_ok=True)
        source = JudgeEndpoint(settings) if there else cast(JudgeEndpoint, NoJudge())
        yield JudgeClient(source, replace(settings, budget=0), Path(scratch))
