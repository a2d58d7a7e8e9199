"""A judge: a model that is asked about each failed trajectory; its advice is the hint of the last turns.

hindsight train nano feedback.sources=[judge.py] feedback.advised_turns=3
"""

from __future__ import annotations

from dataclasses import dataclass

from hindsight.configs.setting import setting
from hindsight.feedback.reading import Question, Reading, Unreadable, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.transcript import Style, shortened, steps, task
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory


class Example(JudgedSource):
    """One piece of advice for each failed trajectory. `judge.source` says which model is asked."""

    needs = "trajectory"  # no sibling: the model is asked as soon as a trajectory ends

    @dataclass(frozen=True)
    class Settings(Judged):
        """The section `feedback`, extended."""

        advised_turns: int = setting(2, "turns at the end of the trajectory that get the advice", low=1)

    settings: Example.Settings

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        trajectory = group.trajectories[index]
        if trajectory.success:
            return None  # nothing is asked, and its turns get no hint

        def write(characters: int) -> str:
            attempt = "\n\n".join(shortened(steps(trajectory), characters))
            request = "The attempt failed. In one sentence, what should the agent do differently?"
            return f"{task(trajectory)}\n\n{attempt}\n\n{request}"

        return Question(write)

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        advice = words(without_thought(answer))
        if not advice:
            raise Unreadable("the answer is empty")  # counted; the trajectory trains without hints
        turns = range(len(trajectory.turns))[-self.settings.advised_turns :]
        return Reading({turn: f"Advice on this attempt:\n{advice}" for turn in turns})
