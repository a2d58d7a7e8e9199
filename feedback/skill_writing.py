"""Skills that a judge writes from rollouts: of one trajectory (OPID), or a guide for a group (GRSD). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hindsight.feedback.reading import Note, Question, Reading, Unreadable, json_objects, listed, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.transcript import Style, attempt_with, section, shortened, task
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory, TurnAt

EPISODE_TITLE = "A skill learned from this attempt:"
STEP_TITLE = "A skill for this step:"
GUIDE_TITLE = "What attempts at this task have taught:"
STEP_SKILLS = 5  # of one trajectory, at most
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "episode": {"type": "string"},
        "steps": {
            "type": "array",
            "maxItems": STEP_SKILLS,
            "items": {
                "type": "object",
                "properties": {"turn": {"type": "integer"}, "skill": {"type": "string"}},
                "required": ["turn", "skill"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["episode", "steps"],
    "additionalProperties": False,
}
EXTRACT = (
    "Say what can be learned from this attempt for the next one at a task like it.\n"
    'Reply with JSON only: {{"episode": "…", "steps": [{{"turn": 1, "skill": "…"}}, …]}}.\n'
    "- episode: one or two sentences of advice for the whole task; after a failure, what to do instead.\n"
    "- steps: for at most {steps} turns that decided how it ended, one sentence of advice for exactly that "
    "situation. Leave out turns that did not matter."
)
REFLECT = (
    "This was your own attempt. Write three numbered points, one sentence each: if it succeeded, what you "
    "did that made it succeed; if it failed, what went wrong and what to do instead. Name the actions. "
    "Reply with the three points only."
)
CONTRAST = (
    "Compare the attempts and write a short guide for this task, with two lists and nothing else:\n"
    "DO: three to five things that the successful attempts did and that matter.\n"
    "AVOID: three to five mistakes that made attempts fail.\n"
    "Each is one imperative sentence that names concrete objects and actions."
)


class ExtractedSkills(JudgedSource):
    """OPID (arXiv 2606.26790): a skill for the trajectory, and skills for the turns that decided it.

    A turn's hint is its own skill if it has one, or else the trajectory's.
    """

    SCHEMA = SCHEMA
    needs = "trajectory"

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        return Question(attempt_with(group.trajectories[index], EXTRACT.format(steps=STEP_SKILLS)))

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """
        Raises:
            Unreadable: the answer has no skill for the trajectory.
        """
        episode, own = extracted(answer, len(trajectory.turns))
        texts = {
            number: f"{STEP_TITLE}\n{own[number]}" if number in own else f"{EPISODE_TITLE}\n{episode}"
            for number in range(len(trajectory.turns))
        }
        return Reading(texts, notes={number: Note("skill", text) for number, text in own.items()})


class Guide(JudgedSource):
    """GRSD (arXiv 2607.28076): each attempt is reflected upon, then all together become one guide.

    The guide is shown at every turn of a group in which some attempts succeeded and some failed. The paper
    also trains the policy to reflect, on grades of another judge; this source does not.
    """

    @dataclass(frozen=True)
    class Settings(Judged):
        """No additional settings."""

        @property
        def summary(self) -> str:
            return "guide, per group"

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        if len({trajectory.success for trajectory in group.trajectories}) < 2:
            return None
        return Question(attempt_with(group.trajectories[index], REFLECT))

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """
        Raises:
            Unreadable: the answer has no text.
        """
        said = without_thought(answer).strip()
        if not said:
            raise Unreadable("the reflection is empty")
        return Reading(notes={len(trajectory.turns) - 1: Note("reflection", said)})

    def conclusion(self, group: Group, readings: Mapping[int, Reading], style: Style) -> Question | None:
        """The question for the guide; None unless a success and a failure have been reflected upon."""
        said: dict[bool, list[str]] = {True: [], False: []}
        for index, reading in readings.items():
            said[group.trajectories[index].success] += [note.text for note in reading.notes.values()]
        if not said[True] or not said[False]:
            return None

        def write(characters: int) -> str:
            blocks = {
                success: "\n\n".join(shortened(texts, characters // 2)) for success, texts in said.items()
            }
            parts = [
                section("Task:", task(group.trajectories[0])),
                section("Of attempts that succeeded:", blocks[True]),
                section("Of attempts that failed:", blocks[False]),
                CONTRAST,
            ]
            return "\n\n".join(part for part in parts if part)

        return Question(write)

    def conclude(self, answer: str, group: Group, style: Style) -> dict[TurnAt, str]:
        said = without_thought(answer).strip()
        if not said:
            raise Unreadable("the guide is empty")
        return {
            (index, number): f"{GUIDE_TITLE}\n{said}"
            for index, trajectory in enumerate(group.trajectories)
            for number in range(len(trajectory.turns))
        }


def extracted(answer: str, turns: int) -> tuple[str, dict[int, str]]:
    """The trajectory's skill, and the skills of turns (from 0). Invalid entries are skipped.

    Raises:
        Unreadable: there is no skill for the trajectory.
    """
    items = listed(without_thought(answer), "steps")
    episode = next(
        (said for one in json_objects(without_thought(answer)) if (said := words(one.get("episode")))), ""
    )
    if not episode:
        raise Unreadable(f"no skill in {answer[:200]!r}")
    found: dict[int, str] = {}
    for item in items:
        number, skill = item.get("turn"), words(item.get("skill"))
        if type(number) is int and 1 <= number <= turns and skill and len(found) < STEP_SKILLS:
            found.setdefault(number - 1, skill)
    return episode, found
