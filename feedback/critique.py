"""SERL's judge: a critique of the whole trajectory, shown at each of its turns (arXiv 2605.19447). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hindsight.feedback.reading import Question, Reading, Unreadable, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.sources import sibling
from hindsight.feedback.transcript import (
    Style,
    outcome,
    plain_text,
    section,
    shortened,
    task,
    transcript,
)
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory

TITLE = "A judge's words on this attempt:"
REQUEST = (
    'Judge this attempt in 2 to 4 plain sentences. Begin with "This attempt succeeded." or "This attempt '
    'failed." Then say what the agent did right or wrong, and end with the most useful lesson for next time. '
    "Reply with these sentences only."
)


class Critique(JudgedSource):
    """A judge's critique of the whole trajectory, shown at each of its turns."""

    needs = "trajectory"

    @dataclass(frozen=True)
    class Settings(Judged):
        """No additional settings."""

        sees_sibling: ClassVar[bool] = True

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """Show the task, trajectory and outcome, plus the successful sibling if there is one to show."""
        trajectory = group.trajectories[index]
        last = plain_text(trajectory.turns[-1].result.observation)
        other = sibling(group, index) if style.feedback.informs_judge else None

        def write(characters: int) -> str:
            parts = [
                section("Task:", task(trajectory)),
                section("Attempt:", _written(trajectory, style, characters)),
                section("How it ended:", f"{outcome(trajectory)}, {len(trajectory.turns)} turns"),
                section("Last observation:", *shortened([last], characters)),
            ]
            if other:
                success = _written(other, style, characters)
                parts.append(section("A successful attempt at the same task:", success))
            return "\n\n".join([part for part in parts if part] + [REQUEST])

        return Question(write)

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """Return the judge's sentences as the hint for every turn.

        Raises:
            Unreadable: the answer has no text.
        """
        said = words(without_thought(answer))
        if not said:
            raise Unreadable("the judge's answer is empty")
        return Reading({number: f"{TITLE}\n{said}" for number in range(len(trajectory.turns))})


def _written(trajectory: Trajectory, style: Style, characters: int) -> str:
    turns = [
        transcript([turn], style.feedback.rendering, first)
        for first, turn in enumerate(trajectory.turns, start=1)
    ]
    return "\n".join(shortened(turns, characters))
