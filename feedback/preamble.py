"""Text before the task in prompting baselines: ReAct's worked example, Reflexion's lessons. Pure.

example ─► lessons from earlier attempts ─► task            (ReAct, arXiv 2210.03629; Reflexion, 2303.11366)
"""

from __future__ import annotations

from collections.abc import Sequence

from hindsight.envs.base import Demonstration
from hindsight.feedback.reading import Question, words
from hindsight.feedback.transcript import ELLIPSIS, NONE, plain_text, section, shortened, task
from hindsight.rollout.action_format import THOUGHT, THOUGHT_END, Form, without_thought
from hindsight.rollout.types import Trajectory

EXAMPLE_TITLE = "A worked example of another task:"
LESSONS_TITLE = "Lessons that you drew from your earlier attempts at the task below:"
TASK_TITLE = "Your task now:"
MEMORY = 3  # number of lessons shown, latest last
LONGEST = 100  # words in one lesson
NAMED = 120  # characters of an observation or task quoted in a thought
ENDINGS = {
    "terminated": "The environment ended the attempt.",
    "truncated": "You ran out of turns.",
    "context": "The context had no room for another turn.",
}
REQUEST = (
    "Your attempt failed. You will start the same task again. In 2 to 4 plain sentences, say what you did "
    "wrong and exactly what you will do differently, naming places, things and actions. Reply with these "
    "sentences only."
)


def preamble(example: str, lessons: Sequence[str]) -> str:
    """Return the text before the task; empty without an example and lessons."""
    lines = "\n".join(f"- {lesson}" for lesson in lessons)
    parts = [part for part in (section(EXAMPLE_TITLE, example), section(LESSONS_TITLE, lines)) if part]
    return "\n\n".join([*parts, TASK_TITLE]) if parts else ""


def worked_example(demonstration: Demonstration, form: Form, characters: int) -> str:
    """Format a demonstration as observations and answers, with thoughts from `thoughts`.

    Args:
        form: the agent's answer format.
        characters: limit on all observations together; longer ones are cut in the middle.
    """
    seen = [step.observation.text.strip() for step in demonstration.steps]
    steps = zip(shortened(seen, characters), thoughts(seen), demonstration.steps, strict=True)
    return "\n".join(
        f"Observation: {text}\nAnswer: {THOUGHT}{thought}{THOUGHT_END}\n{form.write(step.action)}"
        for text, thought, step in steps
    )


def thoughts(seen: Sequence[str]) -> list[str]:
    """Return a thought for each observation: what the agent sees, and its task.

    The task is the last line of the first observation. The thoughts show the format but contain no reasoning.
    """
    last_line = seen[0].strip().rpartition("\n")[2]
    sought = f"To do: {_named(last_line)}"
    return [sought, *(f"I see: {_named(text)} {sought}" for text in seen[1:])]


def question(trajectory: Trajectory) -> Question:
    """Ask the model to reflect on its failed attempt, given its actions and their results (Reflexion)."""
    turns = [
        f"Step {number} action: {turn.action or NONE}\n"
        f"Step {number} result: {plain_text(turn.result.observation)}"
        for number, turn in enumerate(trajectory.turns, start=1)
    ]

    def write(characters: int) -> str:
        parts = [
            section("Task:", task(trajectory)),
            section("Your attempt:", "\n".join(shortened(turns, characters))),
            f"{ENDINGS[trajectory.ended]} {REQUEST}",
        ]
        return "\n\n".join(part for part in parts if part)

    return Question(write)


def remember(lessons: Sequence[str], answer: str) -> tuple[str, ...]:
    """Return the memory with the lesson from an answer added. An empty answer adds none."""
    said = words(without_thought(answer)).split()
    lesson = " ".join(said[:LONGEST]) + (ELLIPSIS.rstrip() if len(said) > LONGEST else "")
    return (*lessons, lesson)[-MEMORY:] if lesson else tuple(lessons)


def _named(text: str) -> str:
    return shortened([words(text)], NAMED)[0]
