"""Feedback sources: the titled section of text in a turn's teacher context (SERL, arXiv 2605.19447)."""

from __future__ import annotations

from configs.schema import Feedback
from rollout.types import Group, Turn

IMMEDIATE_TITLE = "Feedback on the action taken at this step:"


def hindsight(group: Group, feedback: Feedback) -> dict[tuple[int, int], str]:
    """The sections of a group.

    Returns:
        (trajectory index, turn index) -> section text, for each turn that has a context; the others keep
        weight 1.
    """
    if feedback.source == "none":
        return {}
    return {
        (index, number): immediate_section(turn.result.feedback)
        for index, trajectory in enumerate(group.trajectories)
        for number, turn in enumerate(trajectory.turns)
        if has_context(turn)
    }


def has_context(turn: Turn) -> bool:
    """Whether hindsight may reweight this turn: its action parsed and the environment answered it in text.

    An action that parsed but was not admissible has a context: SERL exempts only actions that did not parse,
    and the answer to an inadmissible one ("Nothing happens.") is what this source is there to show.
    """
    return turn.action_span is not None and bool(turn.result.feedback.strip())


def immediate_section(feedback: str) -> str:
    """The section that shows what the environment returned to an action."""
    return f"{IMMEDIATE_TITLE}\n{feedback.strip()}"
