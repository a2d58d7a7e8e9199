"""Feedback sources: the titled section of text in a turn's teacher context (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hindsight.configs.schema import Feedback
from hindsight.feedback.anchors import anchors
from hindsight.feedback.pool import pooled_section
from hindsight.feedback.transcript import Style, section, transcript
from hindsight.rollout.types import Group, Trajectory, TurnAt

IMMEDIATE_TITLE = "Feedback on the action taken at this step:"
NEXT_TITLE = "Observation after the action taken at this step:"
FUTURE_TITLE = "What was done after this step:"
REFERENCE_TITLE = "A reference solution of this task:"
SUCCESS_TITLE = "A successful attempt at this task:"


def source_texts(group: Group, style: Style) -> dict[TurnAt, str]:
    """(trajectory, turn) -> section of a source that needs no judge, for each turn that has one."""
    if style.feedback.granularity == "step":
        found = {key: _section_of(group, key, style) for key in _turns(group)}
    else:
        pools = [
            (members, pooled_section(group, members, style))
            for members in anchors(group, style.feedback.similarity)
        ]
        pooled = {key: text for members, text in pools for key in members}
        found = {key: pooled[key] for key in _turns(group)}
    return {key: text for key, text in found.items() if text is not None}


def combined(group: Group, texts: Mapping[TurnAt, str], feedback: Feedback) -> dict[TurnAt, str]:
    """The source's texts with what feedback.sibling does to them; a turn that lacks a part has no text.

    A judge that was shown the sibling speaks of it, so its words stand for both.
    """
    if feedback.sibling == "none":
        return dict(texts)
    siblings = [sibling(group, index) for index in range(len(group.trajectories))]
    found = {}
    for key in _turns(group):
        other, text = siblings[key[0]], texts.get(key)
        shown = success_section(other, feedback) if other else None
        if feedback.sibling == "and":
            parts = [text] if feedback.source == "judge" else [shown, text]
            chosen = "\n\n".join(part for part in parts if part) if shown and text else None
        else:
            chosen = shown or (text if feedback.sibling == "or" else None)
        if chosen:
            found[key] = chosen
    return found


def asked_about(group: Group, feedback: Feedback) -> list[int]:
    """The trajectories whose source is needed: `or` needs it without a successful sibling, `and` with one."""
    return [
        index
        for index in range(len(group.trajectories))
        if feedback.sibling == "none" or (feedback.sibling == "and") == (sibling(group, index) is not None)
    ]


def sibling(group: Group, index: int) -> Trajectory | None:
    """The group's first successful trajectory that is not this one."""
    others = (t for other, t in enumerate(group.trajectories) if other != index and t.success)
    return next(others, None)


def success_section(trajectory: Trajectory, feedback: Feedback) -> str:
    """The section that shows a successful sibling."""
    return f"{SUCCESS_TITLE}\n{transcript(trajectory.turns, feedback.rendering)}"


def immediate_section(feedback: str) -> str:
    """The section that shows what the environment returned to an action."""
    return f"{IMMEDIATE_TITLE}\n{feedback.strip()}"


def _section_of(group: Group, key: TurnAt, style: Style) -> str | None:
    turns, number = group.trajectories[key[0]].turns, key[1]
    result = turns[number].result
    match style.feedback.source:
        case "immediate":
            return immediate_section(result.feedback) if result.feedback.strip() else None
        case "next_observation":
            return section(NEXT_TITLE, style.show(result.observation))
        case "future":
            later = transcript(turns[number + 1 :], style.feedback.rendering, first=number + 2)
            return section(FUTURE_TITLE, later)
        case "reference":
            lines = (f"Step {step}: {action}" for step, action in enumerate(group.reference, start=1))
            return section(REFERENCE_TITLE, "\n".join(lines))
    return None  # none: only a successful sibling is shown


def _turns(group: Group) -> Iterator[TurnAt]:
    for index, trajectory in enumerate(group.trajectories):
        for number in range(len(trajectory.turns)):
            yield index, number
