"""Feedback sources that need no judge. A hint is a titled section of text (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from hindsight.configs.method import Feedback
from hindsight.feedback.anchors import anchors
from hindsight.feedback.pool import pooled_actions, pooled_feedback
from hindsight.feedback.source import FeedbackSource, Pooled
from hindsight.feedback.transcript import Style, section, transcript
from hindsight.rollout.types import Group, Trajectory, Turn, TurnAt

IMMEDIATE_TITLE = "Feedback on the action taken at this step:"
NEXT_TITLE = "Observation after the action taken at this step:"
FUTURE_TITLE = "What was done after this step:"
REFERENCE_TITLE = "A reference solution of this task:"
SUCCESS_TITLE = "A successful attempt at this task:"


class Immediate(FeedbackSource):
    """The environment's feedback on the action."""

    Settings = Pooled
    needs = "trajectory"

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        feedback = _turn(group, at).result.feedback
        return immediate_section(feedback) if feedback.strip() else None

    def pool(self, group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
        return pooled_feedback(group, members)


class NextObservation(FeedbackSource):
    """The full next observation."""

    Settings = Pooled
    needs = "trajectory"

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        return section(NEXT_TITLE, style.show(_turn(group, at).result.observation))

    def pool(self, group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
        def shown(at: TurnAt) -> str:
            return style.show(_turn(group, at).result.observation).strip()

        return pooled_actions(group, members, style, ("next observation", shown))


class Future(FeedbackSource):
    """The later turns of the trajectory."""

    Settings = Pooled
    needs = "trajectory"

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        return section(FUTURE_TITLE, self._later(group, at, style))

    def pool(self, group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
        def later(at: TurnAt) -> str:
            return self._later(group, at, style)

        return pooled_actions(group, members, style, ("what was done next", later))

    def _later(self, group: Group, at: TurnAt, style: Style) -> str:
        index, number = at
        later = group.trajectories[index].turns[number + 1 :]
        return transcript(later, style.feedback.rendering, first=number + 2)


class Reference(FeedbackSource):
    """The task's reference solution (OPSD)."""

    needs = "trajectory"

    @dataclass(frozen=True)
    class Settings(Feedback):
        """No additional settings."""

        needs_reference: ClassVar[bool] = True

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        lines = (f"Step {step}: {action}" for step, action in enumerate(group.reference, start=1))
        return section(REFERENCE_TITLE, "\n".join(lines))


def source_texts(
    group: Group, source: FeedbackSource, style: Style, about: Collection[int]
) -> dict[TurnAt, str]:
    """Map (trajectory, turn) to its hint from a source that needs no judge, skipping turns without one.

    Args:
        about: the trajectories that get hints.
    """
    if style.feedback.granularity == "step":
        found = {at: source.hint(group, at, style) for at in _turns(group, about)}
    else:
        pools = [
            (members, source.pool(group, members, style))
            for members in anchors(group, style.feedback.similarity)
        ]
        pooled = {at: text for members, text in pools for at in members}
        found = {at: pooled[at] for at in _turns(group, about)}
    return {at: text for at, text in found.items() if text is not None}


def combined(
    group: Group, texts: Mapping[TurnAt, str], feedback: Feedback, about: Collection[int]
) -> dict[TurnAt, str]:
    """Combine the source's hints with the successful sibling, as `feedback.sibling` says.

    With `and`, a turn needs both parts to have a hint. A judge that saw the sibling already covers both.
    """
    if feedback.sibling == "none":
        return dict(texts)
    siblings = {index: sibling(group, index) for index in about}
    found = {}
    for key in _turns(group, about):
        other, text = siblings[key[0]], texts.get(key)
        shown = success_section(other, feedback) if other else None
        if feedback.sibling == "and":
            parts = [text] if feedback.sees_sibling else [shown, text]
            chosen = "\n\n".join(part for part in parts if part) if shown and text else None
        else:
            chosen = shown or (text if feedback.sibling == "or" else None)
        if chosen:
            found[key] = chosen
    return found


def asked_about(group: Group, feedback: Feedback, about: Collection[int]) -> list[int]:
    """Return those of the trajectories that need the source.

    These are the ones without a successful sibling for `feedback.sibling=or`, the ones with a successful
    sibling for `and`, and all for `none`.
    """
    return [
        index
        for index in about
        if feedback.sibling == "none" or (feedback.sibling == "and") == (sibling(group, index) is not None)
    ]


def sibling(group: Group, index: int) -> Trajectory | None:
    """Return the first other successful trajectory of the group, or None."""
    others = (t for other, t in enumerate(group.trajectories) if other != index and t.success)
    return next(others, None)


def success_section(trajectory: Trajectory, feedback: Feedback) -> str:
    """Return the section that shows a successful sibling."""
    return f"{SUCCESS_TITLE}\n{transcript(trajectory.turns, feedback.rendering)}"


def immediate_section(feedback: str) -> str:
    """Return the section that shows the environment's feedback on an action."""
    return f"{IMMEDIATE_TITLE}\n{feedback.strip()}"


def _turns(group: Group, about: Collection[int]) -> Iterator[TurnAt]:
    for index in about:
        for number in range(len(group.trajectories[index].turns)):
            yield index, number


def _turn(group: Group, at: TurnAt) -> Turn:
    return group.trajectories[at[0]].turns[at[1]]
