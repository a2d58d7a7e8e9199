"""Anchor granularity: one hint for all turns of a group in the same state (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import indent

from hindsight.feedback.source import PooledSource, best, worst
from hindsight.feedback.transcript import Style, outcome, section
from hindsight.rollout.types import Group, Turn, TurnAt

FEEDBACK_TITLE = "Feedback on the actions tried in this state:"
ACTIONS_TITLE = "Actions tried in this state:"


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


def pooled_actions(
    group: Group, members: Sequence[TurnAt], sources: Sequence[PooledSource], style: Style
) -> str | None:
    """Summarize each distinct action of an anchor's members, or None if no member took one.

    A summary has the number of tries and successes, the mean reward, the best and worst outcome, and what the
    sources say of the tries that they pick. What has been said of a better try of it is not repeated.
    """
    tries = _tries(group, members)
    lines = [_summarize(group, action, keys, sources, style) for action, keys in tries.items()]
    return section(ACTIONS_TITLE, "\n".join(lines))


def _tries(group: Group, members: Sequence[TurnAt]) -> dict[str, list[TurnAt]]:
    """Map each action (whitespace normalized) to the turns that took it, in order of first appearance."""
    tries: dict[str, list[TurnAt]] = {}
    for key in members:
        if (action := _turn(group, key).action) is not None:
            tries.setdefault(" ".join(action.split()), []).append(key)
    return tries


def _summarize(
    group: Group, action: str, keys: list[TurnAt], sources: Sequence[PooledSource], style: Style
) -> str:
    """Summarize the tries of one action."""
    played = [group.trajectories[index] for index, _ in keys]
    won = sum(trajectory.success for trajectory in played)
    mean = sum(trajectory.reward for trajectory in played) / len(keys)
    first, last = (group.trajectories[pick(group, keys)[0]] for pick in (best, worst))
    lines = [
        f"- {action}: tries {len(keys)}, successes {won}, mean reward {mean:.3g}",
        f"  best outcome: {outcome(first)}; worst outcome: {outcome(last)}",
    ]
    picked = [
        (which, name, key, source)
        for source in sources
        for which, (name, key) in enumerate(source.picks(group, keys).items())
    ]
    shown: set[str] = set()
    for _, name, key, source in sorted(picked, key=lambda pick: pick[0]):  # the better tries first
        text = source.text(group, key, style)
        if text.strip() and text not in shown:
            shown.add(text)
            lines += [f"  {source.LABEL}, {name}:", indent(text, "    ")]
    return "\n".join(lines)


def _turn(group: Group, key: TurnAt) -> Turn:
    return group.trajectories[key[0]].turns[key[1]]
