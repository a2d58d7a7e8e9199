"""Anchor granularity: one hint for all turns of a group in the same state (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import indent

from hindsight.feedback.transcript import Style, outcome, section
from hindsight.rollout.types import Group, Turn, TurnAt

FEEDBACK_TITLE = "Feedback on the actions tried in this state:"
ACTIONS_TITLE = "Actions tried in this state:"


Followed = tuple[str, Callable[[TurnAt], str]]  # a label, and the text of what followed one try


def pooled_feedback(group: Group, members: Sequence[TurnAt]) -> str | None:
    """Return a line for each distinct (action, feedback) of an anchor's members, or None if there is none.

    Malformed turns are skipped.
    """
    lines = [
        f"- {action}: {feedback}"
        for action, keys in _tries(group, members).items()
        for feedback in dict.fromkeys(_turn(group, key).result.feedback.strip() for key in keys)
        if feedback
    ]
    return section(FEEDBACK_TITLE, "\n".join(lines))


def pooled_actions(group: Group, members: Sequence[TurnAt], style: Style, followed: Followed) -> str | None:
    """Summarize each distinct action of an anchor's members.

    A summary has the number of tries and successes, the mean reward, the best and worst outcome, and what
    followed those two.
    """
    tries = _tries(group, members)
    lines = [_summarize(group, action, keys, style, followed) for action, keys in tries.items()]
    return section(ACTIONS_TITLE, "\n".join(lines))


def _tries(group: Group, members: Sequence[TurnAt]) -> dict[str, list[TurnAt]]:
    """Map each action (whitespace normalized) to the turns that took it, in order of first appearance."""
    tries: dict[str, list[TurnAt]] = {}
    for key in members:
        if (action := _turn(group, key).action) is not None:
            tries.setdefault(" ".join(action.split()), []).append(key)
    return tries


def _summarize(group: Group, action: str, keys: list[TurnAt], style: Style, followed: Followed) -> str:
    """Summarize the tries of one action."""
    played = {key: group.trajectories[key[0]] for key in keys}

    def rank(key: TurnAt) -> tuple[bool, float]:
        return played[key].success, played[key].reward

    best, worst = max(keys, key=rank), min(keys, key=rank)  # ties: the earliest
    won = sum(trajectory.success for trajectory in played.values())
    mean = sum(trajectory.reward for trajectory in played.values()) / len(keys)
    lines = [
        f"- {action}: tries {len(keys)}, successes {won}, mean reward {mean:.3g}",
        f"  best outcome: {outcome(played[best])}; worst outcome: {outcome(played[worst])}",
    ]
    shown: dict[str, None] = {}
    for name, key in (("best", best), ("worst", worst)):
        for label, text in _followed_by(group, key, style, followed):
            if text and text not in shown:
                shown[text] = None
                lines += [f"  {label}, {name} outcome:", indent(text, "    ")]
    return "\n".join(lines)


def _followed_by(group: Group, key: TurnAt, style: Style, followed: Followed) -> list[tuple[str, str]]:
    """Return (label, text) pairs of what followed one try."""
    label, text = followed
    feedback = _turn(group, key).result.feedback.strip()
    return [("feedback", feedback)] * style.feedback.anchor_feedback + [(label, text(key))]


def _turn(group: Group, key: TurnAt) -> Turn:
    return group.trajectories[key[0]].turns[key[1]]
