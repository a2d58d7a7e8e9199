"""Anchor granularity: one text for all turns of a group in the same state (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent

from hindsight.feedback.transcript import Style, outcome, section, transcript
from hindsight.rollout.types import Group, Turn, TurnAt

FEEDBACK_TITLE = "Feedback on the actions tried in this state:"
ACTIONS_TITLE = "Actions tried in this state:"


def pooled_section(group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
    """What the tries of an anchor's members led to; None where it says nothing.

    Source immediate: a line for each distinct (action, feedback). Sources next_observation and future: for
    each distinct action how often it was tried, how often that led to success, the mean reward, the best and
    the worst outcome, and what followed those two. Answers that did not parse tried nothing.
    """
    tries = _tries(group, members)
    if style.feedback.source == "immediate":
        lines = [
            f"- {action}: {feedback}"
            for action, keys in tries.items()
            for feedback in dict.fromkeys(_turn(group, key).result.feedback.strip() for key in keys)
            if feedback
        ]
        return section(FEEDBACK_TITLE, "\n".join(lines))
    told = [_tell(group, action, keys, style) for action, keys in tries.items()]
    return section(ACTIONS_TITLE, "\n".join(told))


def _tries(group: Group, members: Sequence[TurnAt]) -> dict[str, list[TurnAt]]:
    """Action, with its white space made even -> the turns that took it, in order of first appearance."""
    tries: dict[str, list[TurnAt]] = {}
    for key in members:
        if (action := _turn(group, key).action) is not None:
            tries.setdefault(" ".join(action.split()), []).append(key)
    return tries


def _tell(group: Group, action: str, keys: list[TurnAt], style: Style) -> str:
    """One action's tries."""
    played = {key: group.trajectories[key[0]] for key in keys}

    def rank(key: TurnAt) -> tuple[bool, float]:
        return played[key].success, played[key].reward

    best, worst = max(keys, key=rank), min(keys, key=rank)  # the earliest of equals
    won = sum(trajectory.success for trajectory in played.values())
    mean = sum(trajectory.reward for trajectory in played.values()) / len(keys)
    lines = [
        f"- {action}: tries {len(keys)}, successes {won}, mean reward {mean:.3g}",
        f"  best outcome: {outcome(played[best])}; worst outcome: {outcome(played[worst])}",
    ]
    told: dict[str, None] = {}
    for name, key in (("best", best), ("worst", worst)):
        for label, text in _followed(group, key, style):
            if text and text not in told:
                told[text] = None
                lines += [f"  {label}, {name} outcome:", indent(text, "    ")]
    return "\n".join(lines)


def _followed(group: Group, key: TurnAt, style: Style) -> list[tuple[str, str]]:
    """(label, text) of what came of one try."""
    turn, (index, number) = _turn(group, key), key
    found = []
    if style.feedback.anchor_feedback:
        found.append(("feedback", turn.result.feedback.strip()))
    if style.feedback.source == "next_observation":
        found.append(("next observation", style.show(turn.result.observation).strip()))
    else:
        later = group.trajectories[index].turns[number + 1 :]
        found.append(("what was done next", transcript(later, style.feedback.rendering, first=number + 2)))
    return found


def _turn(group: Group, key: TurnAt) -> Turn:
    return group.trajectories[key[0]].turns[key[1]]
