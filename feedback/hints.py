"""Gather the hints of a group, for any method: the entry point of this package.

group ─► sources (environment feedback, siblings or a judge's answers) ─► combined ─► hints
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from hindsight.configs.method import Feedback
from hindsight.feedback.combine import Texts, anchor_texts, combined, lacking, source_texts
from hindsight.feedback.judge_client import Answer, Ask, JudgeError
from hindsight.feedback.reading import Note, Question, Reading, Unreadable
from hindsight.feedback.source import FeedbackSource, JudgedSource, make_sources
from hindsight.feedback.sources import Sibling
from hindsight.feedback.transcript import Show, Style, plain_text
from hindsight.rollout.types import Failure, Group, TurnAt

Read = TypeVar("Read")


@dataclass(frozen=True)
class Hints:
    """Hindsight hints for the turns of a group."""

    texts: dict[TurnAt, str] = field(default_factory=dict)  # (trajectory, turn) -> text, in that order
    failures: tuple[Failure, ...] = ()  # unanswered questions
    asked: int = 0  # questions sent to the judge
    unreadable: int = 0  # unparsable answers or entries of one, and turns missing from an answer
    tokens_read: int = 0  # prompt tokens, as reported by the judge
    tokens_written: int = 0  # generated tokens
    notes: dict[TurnAt, Note] = field(default_factory=dict)  # what a judge said of a turn, for people

    @property
    def figures(self) -> dict[str, float]:
        """Return the counts as metrics."""
        return {
            "feedback/texts": len(self.texts),
            "feedback/asked": self.asked,
            "feedback/unreadable": self.unreadable,
            "feedback/tokens_read": self.tokens_read,
            "feedback/tokens_written": self.tokens_written,
        }

    def joined(self, later: Hints) -> Hints:
        """Return the counts, failures and notes of both, with the texts of `later`."""
        return Hints(
            texts=later.texts,
            failures=self.failures + later.failures,
            asked=self.asked + later.asked,
            unreadable=self.unreadable + later.unreadable,
            tokens_read=self.tokens_read + later.tokens_read,
            tokens_written=self.tokens_written + later.tokens_written,
            notes=self.notes | later.notes,
        )


async def gather_hints(
    group: Group,
    feedback: Feedback,
    ask: Ask | None = None,
    show: Show = plain_text,
    whole_turns: bool = False,
    about: Collection[int] | None = None,
) -> Hints:
    """Gather the hints for a group's turns. A turn without a hint trains without hindsight.

    Args:
        about: the trajectories whose turns get hints; None: all.
        ask: sends a question to the judge; required if `feedback.judged`.
        show: formats an observation as the student saw it (`Renderer.show`).
        whole_turns: include malformed turns, for signals that cover more than the action's tokens.

    Raises:
        ValueError: a source requires a judge and `ask` is None.
    """
    sources, gathered = make_sources(feedback), Hints()
    style = Style(sources[0].settings if sources else feedback, show=show)
    about = range(len(group.trajectories)) if about is None else about
    if feedback.granularity == "anchor":
        texts = anchor_texts(group, sources, style, about)
    else:
        gathered = await _by_step(group, sources, style, ask, about)
        texts = gathered.texts
    shown = {
        (index, number): text
        for (index, number), text in texts.items()
        if whole_turns or group.trajectories[index].turns[number].action_span is not None
    }
    return replace(gathered, texts=shown)


async def _by_step(
    group: Group, sources: Sequence[FeedbackSource], style: Style, ask: Ask | None, about: Collection[int]
) -> Hints:
    """Gather each turn's own hint, judges last: they are asked only where others leave room for an answer."""
    feedback, gathered = style.feedback, Hints()
    if feedback.informs_judge:
        sources = [source for source in sources if not isinstance(source, Sibling)]
    parts: list[Texts | None] = [
        None if isinstance(source, JudgedSource) else source_texts(group, source, style, about)
        for source in sources
    ]
    for place, source in enumerate(sources):
        if not isinstance(source, JudgedSource):
            continue
        if ask is None:
            raise ValueError(f"feedback.sources={feedback.sources} need a judge to ask")
        open_ones = lacking(group, parts, place, feedback.combine, about)
        answered = await _ask(group, source, style, ask, open_ones)
        parts[place], gathered = answered.texts, gathered.joined(answered)
    known = [part for part in parts if part is not None]
    return replace(gathered, texts=combined(group, known, feedback.combine, about))


async def _ask(group: Group, source: JudgedSource, style: Style, ask: Ask, indices: Sequence[int]) -> Hints:
    """Ask about these trajectories, concurrently."""
    given: list[Answer] = []

    async def asked(question: Question, read: Callable[[str], Read]) -> Read | Failure | Unreadable:
        try:
            answer = await ask(question, source.SCHEMA)
            given.append(answer)
            return read(answer.text)
        except JudgeError as error:
            return Failure("judge", str(error), group.task.id)
        except Unreadable as error:
            return error

    def about(index: int, question: Question) -> Coroutine[Any, Any, Reading | Failure | Unreadable]:
        return asked(question, lambda answer: source.read(answer, group.trajectories[index], style))

    questions = {
        index: question for index in indices if (question := source.question(group, index, style)) is not None
    }
    answers: list[Any] = await asyncio.gather(*(about(*item) for item in questions.items()))
    readings = {
        index: answer for index, answer in zip(questions, answers, strict=True) if isinstance(answer, Reading)
    }
    texts = {(i, turn): text for i, reading in readings.items() for turn, text in reading.texts.items()}
    last = source.conclusion(group, readings, style)
    if last is not None:
        answers.append(said := await asked(last, lambda answer: source.conclude(answer, group, style)))
        texts = said if isinstance(said, dict) else {}
    unreadable = sum(isinstance(answer, Unreadable) for answer in answers)
    return Hints(
        texts=texts,
        notes={(i, turn): note for i, reading in readings.items() for turn, note in reading.notes.items()},
        failures=tuple(answer for answer in answers if isinstance(answer, Failure)),
        asked=len(answers),
        unreadable=unreadable + sum(reading.unreadable for reading in readings.values()),
        tokens_read=sum(answer.tokens_read for answer in given),
        tokens_written=sum(answer.tokens_written for answer in given),
    )
