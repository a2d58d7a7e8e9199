"""Feedback sources that need no judge. A hint is a titled section of text (SERL, arXiv 2605.19447). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from hindsight.configs.method import Feedback
from hindsight.feedback.source import FeedbackSource, Pooled, PooledSource, best, worst
from hindsight.feedback.transcript import Style, section, transcript
from hindsight.rollout.types import Group, Trajectory, Turn, TurnAt

IMMEDIATE_TITLE = "Feedback on the action taken at this step:"
NEXT_TITLE = "Observation after the action taken at this step:"
FUTURE_TITLE = "What was done after this step:"
REFERENCE_TITLE = "A reference solution of this task:"
SUCCESS_TITLE = "A successful attempt at this task:"


class Sibling(FeedbackSource):
    """The group's first other successful trajectory."""

    needs = "sibling"

    @dataclass(frozen=True)
    class Settings(Pooled):
        """No additional settings."""

        shows_sibling: ClassVar[bool] = True

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        other = sibling(group, at[0])
        return success_section(other, style.feedback) if other else None


class Immediate(PooledSource):
    """The environment's feedback on the action."""

    TITLE = IMMEDIATE_TITLE
    LABEL = "feedback"
    needs = "trajectory"

    def text(self, group: Group, at: TurnAt, style: Style) -> str:
        return _turn(group, at).result.feedback.strip()


class NextObservation(PooledSource):
    """The full next observation."""

    TITLE = NEXT_TITLE
    LABEL = "next observation"
    needs = "trajectory"

    def text(self, group: Group, at: TurnAt, style: Style) -> str:
        return style.show(_turn(group, at).result.observation).strip()


class Future(PooledSource):
    """The later turns of the trajectory."""

    TITLE = FUTURE_TITLE
    LABEL = "what was done next"
    needs = "trajectory"

    def text(self, group: Group, at: TurnAt, style: Style) -> str:
        index, number = at
        later = group.trajectories[index].turns[number + 1 :]
        return transcript(later, style.feedback.rendering, first=number + 2)

    def picks(self, group: Group, tries: Sequence[TurnAt]) -> dict[str, TurnAt]:
        won = [at for at in tries if group.trajectories[at[0]].success]
        lost = [at for at in tries if not group.trajectories[at[0]].success]
        successes = {"best success": best(group, won)} if won else {}
        return successes | ({"worst failure": worst(group, lost)} if lost else {})


class Reference(FeedbackSource):
    """The task's reference solution (OPSD)."""

    needs = "trajectory"

    @dataclass(frozen=True)
    class Settings(Feedback):
        """No additional settings."""

        needs_solution: ClassVar[bool] = True

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        lines = (f"Step {step}: {action}" for step, action in enumerate(group.reference, start=1))
        return section(REFERENCE_TITLE, "\n".join(lines))


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


def _turn(group: Group, at: TurnAt) -> Turn:
    return group.trajectories[at[0]].turns[at[1]]
