"""SERL's judge: sentences on the whole trajectory, shown at each of its turns (arXiv 2605.19447). Pure."""

from __future__ import annotations

from typing import Any

from hindsight.feedback.reading import Question, Reading, Unreadable, words
from hindsight.feedback.sources import sibling
from hindsight.feedback.transcript import Style, outcome, plain, section, shortened, task, transcript
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory

SCHEMA: dict[str, Any] | None = None
TITLE = "A judge's words on this attempt:"
REQUEST = (
    'Judge this attempt in 2 to 4 plain sentences. Begin with "This attempt succeeded." or "This attempt '
    'failed." Then say what was done right or wrong about the task, and end with the most useful lesson. '
    "Reply with these sentences only."
)


def question(group: Group, index: int, style: Style) -> Question | None:
    """Task, trajectory and outcome; with feedback.sibling=and the successful sibling too."""
    trajectory = group.trajectories[index]
    last = plain(trajectory.turns[-1].result.observation)
    other = sibling(group, index) if style.feedback.sibling == "and" else None

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


def read(answer: str, trajectory: Trajectory, style: Style) -> Reading:
    """The judge's sentences, the same for every turn.

    Raises:
        Unreadable: there are none.
    """
    said = words(without_thought(answer))
    if not said:
        raise Unreadable("the judge said nothing")
    return Reading({number: f"{TITLE}\n{said}" for number in range(len(trajectory.turns))})


def _written(trajectory: Trajectory, style: Style, characters: int) -> str:
    turns = [
        transcript([turn], style.feedback.rendering, first)
        for first, turn in enumerate(trajectory.turns, start=1)
    ]
    return "\n".join(shortened(turns, characters))
