"""The hindsight of a group, whatever the method: the one entry point of this room.

group ─► source: what the environment said, or what a judge writes ─► with a successful sibling ─► texts
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from hindsight.configs.method import Feedback
from hindsight.feedback.judge_client import Answer, Ask, JudgeError
from hindsight.feedback.reading import Question, Reading, Unreadable
from hindsight.feedback.source import JudgedSource, make_source
from hindsight.feedback.sources import asked_about, combined, source_texts
from hindsight.feedback.transcript import Show, Style, plain
from hindsight.rollout.types import Failure, Group, TurnAt


@dataclass(frozen=True)
class Hints:
    """What is known of a group's turns after the fact."""

    texts: dict[TurnAt, str] = field(default_factory=dict)  # (trajectory, turn) -> text, in that order
    failures: tuple[Failure, ...] = ()  # questions that nobody answered
    asked: int = 0  # questions put to the judge
    unreadable: int = 0  # answers that could not be read, and turns that an answer left out
    tokens_read: int = 0  # by who was asked, as far as it says so
    tokens_written: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """As metrics."""
        return {
            "feedback/texts": len(self.texts),
            "feedback/asked": self.asked,
            "feedback/unreadable": self.unreadable,
            "feedback/tokens_read": self.tokens_read,
            "feedback/tokens_written": self.tokens_written,
        }


async def gather_hints(
    group: Group,
    feedback: Feedback,
    ask: Ask | None = None,
    show: Show = plain,
    whole_turns: bool = False,
) -> Hints:
    """The texts of a group's turns; a turn without one trains without hindsight.

    Args:
        ask: whom to ask; needed where `feedback.judged`.
        show: an observation as the student was shown it, `Renderer.show`.
        whole_turns: also turns whose answer did not parse, for signals on more than the action's tokens.
    """
    source, gathered = make_source(feedback), Hints()
    feedback = source.settings
    style = Style(feedback, show=show)
    if not isinstance(source, JudgedSource):
        texts = source_texts(group, source, style)
    elif ask is None:
        raise ValueError(f"feedback.source={feedback.source} needs a judge to ask")
    else:
        gathered = await _ask(group, source, style, ask)
        texts = gathered.texts
    shown = {
        (index, number): text
        for (index, number), text in combined(group, texts, feedback).items()
        if whole_turns or group.trajectories[index].turns[number].action_span is not None
    }
    return replace(gathered, texts=shown)


async def _ask(group: Group, source: JudgedSource, style: Style, ask: Ask) -> Hints:
    """One question about each trajectory that needs one, all at once."""
    given: list[Answer] = []

    async def about(index: int, question: Question) -> Reading | Failure:
        try:
            answer = await ask(question, source.SCHEMA)
            given.append(answer)
            return source.read(answer.text, group.trajectories[index], style)
        except JudgeError as error:
            return Failure("judge", str(error), group.task.id)
        except Unreadable:
            return Reading(unreadable=1)

    questions = {
        index: question
        for index in asked_about(group, style.feedback)
        if (question := source.question(group, index, style)) is not None
    }
    answers = await asyncio.gather(*(about(*item) for item in questions.items()))
    readings = {
        index: answer for index, answer in zip(questions, answers, strict=True) if isinstance(answer, Reading)
    }
    return Hints(
        texts={(i, turn): text for i, reading in readings.items() for turn, text in reading.texts.items()},
        failures=tuple(answer for answer in answers if isinstance(answer, Failure)),
        asked=len(questions),
        unreadable=sum(reading.unreadable for reading in readings.values()),
        tokens_read=sum(answer.tokens_read for answer in given),
        tokens_written=sum(answer.tokens_written for answer in given),
    )
