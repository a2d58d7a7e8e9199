"""What the prompting policies put before a task: ReAct's worked example, Reflexion's lessons. Pure.

example ─► lessons of the trials before ─► task            (ReAct, arXiv 2210.03629; Reflexion, 2303.11366)
"""

from __future__ import annotations

from collections.abc import Sequence

from hindsight.envs.base import Demonstration
from hindsight.feedback.reading import Question, words
from hindsight.feedback.transcript import ELLIPSIS, NONE, plain, section, shortened, task
from hindsight.rollout.action_format import THOUGHT, THOUGHT_END, Form, without_thought
from hindsight.rollout.types import Trajectory

EXAMPLE_TITLE = "A worked example of another task:"
LESSONS_TITLE = "Lessons that you drew from your earlier attempts at the task below:"
TASK_TITLE = "Your task now:"
MEMORY = 3  # lessons that are shown, the latest
LONGEST = 100  # words of one lesson
NAMED = 120  # characters of what a thought names
ENDINGS = {
    "terminated": "The environment ended it.",
    "truncated": "It ran out of turns.",
    "context": "It ran out of room for another turn.",
}
REQUEST = (
    "This attempt of yours failed. You will start the same task anew. In 2 to 4 plain sentences, say what "
    "you did wrong and exactly what you will do differently, naming places, things and actions. Reply with "
    "these sentences only."
)


def preamble(example: str, lessons: Sequence[str]) -> str:
    """All that stands before the task; empty where there is neither example nor lesson."""
    lines = "\n".join(f"- {lesson}" for lesson in lessons)
    parts = [part for part in (section(EXAMPLE_TITLE, example), section(LESSONS_TITLE, lines)) if part]
    return "\n\n".join([*parts, TASK_TITLE]) if parts else ""


def worked_example(demonstration: Demonstration, form: Form, characters: int) -> str:
    """A demonstration as observations and answers, each with a thought by the rule of `thoughts`.

    Args:
        form: how the agent answers.
        characters: the observations are cut in their middle to at most these together.
    """
    seen = [step.observation.text.strip() for step in demonstration.steps]
    steps = zip(shortened(seen, characters), thoughts(seen), demonstration.steps, strict=True)
    return "\n".join(
        f"Observation: {text}\nAnswer: {THOUGHT}{thought}{THOUGHT_END}\n{form.write(step.action)}"
        for text, thought, step in steps
    )


def thoughts(seen: Sequence[str]) -> list[str]:
    """A thought for each observation of an episode: what is seen, and what is sought, which is the last line
    of the first observation. It shows the form of a thought and holds no reasoning of its own."""
    last_line = seen[0].strip().rpartition("\n")[2]
    sought = f"To do: {_named(last_line)}"
    return [sought, *(f"I see: {_named(text)} {sought}" for text in seen[1:])]


def question(trajectory: Trajectory) -> Question:
    """What the model is asked after a failed trial: it is shown what it saw and did, and that it failed."""
    turns = [
        f"Step {number} action: {turn.action or NONE}\nStep {number} result: {plain(turn.result.observation)}"
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
    """The memory with the lesson in an answer; an answer without words leaves it as it is."""
    said = words(without_thought(answer)).split()
    lesson = " ".join(said[:LONGEST]) + (ELLIPSIS.rstrip() if len(said) > LONGEST else "")
    return (*lessons, lesson)[-MEMORY:] if lesson else tuple(lessons)


def _named(text: str) -> str:
    return shortened([words(text)], NAMED)[0]
