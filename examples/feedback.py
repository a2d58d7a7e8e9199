"""A feedback source: how far the attempt got, shown at each of its turns.

hindsight train nano feedback.sources=[feedback.py] feedback.last_turns=3
"""

from __future__ import annotations

from dataclasses import dataclass

from hindsight.configs.method import Feedback
from hindsight.configs.setting import setting
from hindsight.feedback.source import FeedbackSource
from hindsight.feedback.transcript import Style, outcome, section, transcript
from hindsight.rollout.types import Group, TurnAt


class Example(FeedbackSource):
    """The outcome of the trajectory and its last turns, as the hint of every turn."""

    needs = "trajectory"  # no sibling: a trajectory is scored when it ends

    @dataclass(frozen=True)
    class Settings(Feedback):
        """The section `feedback`, extended."""

        last_turns: int = setting(2, "turns at the end of the trajectory that are shown", low=1)

    settings: Example.Settings

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        trajectory = group.trajectories[at[0]]
        first = max(0, len(trajectory.turns) - self.settings.last_turns)
        ending = transcript(trajectory.turns[first:], style.feedback.rendering, first=first + 1)
        return section(f"This attempt ended in {outcome(trajectory)}. Its last turns:", ending)
