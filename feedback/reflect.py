"""HERO's reflection: a diagnosis of each turn after the trajectory has ended (arXiv 2606.11559). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hindsight.configs.setting import setting
from hindsight.feedback.reading import Note, Question, Reading, Unreadable, listed, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.sources import NEXT_TITLE
from hindsight.feedback.transcript import ELLIPSIS, Style, attempt_with, section
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory

GOOD = "good"
VERDICTS = (GOOD, "unnecessary", "invalid", "wrong")
LONGEST = 60  # words in one diagnosis
TURN_TOKENS = 100  # tokens of one diagnosis, including its JSON
DIAGNOSIS_TITLE = "Diagnosis of the action taken at this step:"
REWARD_TITLE = "Final reward of this attempt:"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "turns": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "turn": {"type": "integer"},
                    "verdict": {"type": "string", "enum": list(VERDICTS)},
                    "cause": {"type": "string"},
                    "fix": {"type": ["string", "null"]},
                },
                "required": ["turn", "verdict", "cause", "fix"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["turns"],
    "additionalProperties": False,
}
REQUEST = (
    "You know how the attempt ended. Look back and diagnose each of its {turns} turns: was the action "
    "needed, was it valid, and if it did not help, why not?\n"
    'Reply with JSON only, {{"turns": [{{"turn": 1, "verdict": "…", "cause": "…", "fix": "…"}}, …]}}, '
    "with one object for each turn.\n"
    "- verdict: good (it helped), unnecessary (it changed nothing that matters), invalid (the environment "
    "did not accept it) or wrong (it led away from the goal).\n"
    "- cause: why it deserves that verdict; empty if the verdict is good.\n"
    "- fix: what to answer instead, or null.\n"
    "Use at most {words} words per turn."
)


@dataclass(frozen=True)
class Diagnosis:
    """A judge's verdict on one turn."""

    verdict: str  # one of VERDICTS
    cause: str
    fix: str | None

    def text(self) -> str:
        """Format as text of at most LONGEST words."""
        because = f": {self.cause}" if self.cause else ""
        said = f"{self.verdict}{because}" + (f" Better: {self.fix}" if self.fix else "")
        kept = said.split()
        return said if len(kept) <= LONGEST else " ".join(kept[:LONGEST]) + ELLIPSIS.rstrip()


class Reflect(JudgedSource):
    """A diagnosis of each turn."""

    needs = "trajectory"

    @dataclass(frozen=True)
    class Settings(Judged):
        """Settings of HERO's reflection."""

        observation: bool = setting(True, "show the next observation above the diagnosis")

        @property
        def summary(self) -> str:
            return "reflect, per step" if self.observation else "reflect without the observation, per step"

    settings: Reflect.Settings

    SCHEMA = SCHEMA

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """Show the task, every turn and the outcome. The answer's token limit grows with the turns."""
        trajectory = group.trajectories[index]
        turns = len(trajectory.turns)
        request = REQUEST.format(turns=turns, words=LONGEST)
        return Question(attempt_with(trajectory, request), tokens=TURN_TOKENS * turns)

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """Return hints with the next observation, the diagnosis and the final reward.

        A turn with the verdict "good" gets no hint.

        Raises:
            Unreadable: no turn has a diagnosis.
        """
        found = diagnoses(answer, len(trajectory.turns))
        texts = {
            number: self._section(trajectory, number, diagnosis, style)
            for number, diagnosis in sorted(found.items())
            if diagnosis.verdict != GOOD
        }
        notes = {number: Note("diagnosis", diagnosis.text()) for number, diagnosis in sorted(found.items())}
        return Reading(texts, len(trajectory.turns) - len(found), notes)

    def _section(self, trajectory: Trajectory, number: int, diagnosis: Diagnosis, style: Style) -> str:
        seen = style.show(trajectory.turns[number].result.observation) if self.settings.observation else ""
        parts = [
            section(NEXT_TITLE, seen),
            section(DIAGNOSIS_TITLE, diagnosis.text()),
            f"{REWARD_TITLE} {trajectory.reward:.3g}",
        ]
        return "\n\n".join(part for part in parts if part)


def diagnoses(answer: str, turns: int) -> dict[int, Diagnosis]:
    """Map each turn (from 0) to its first valid diagnosis. Invalid entries are skipped.

    Raises:
        Unreadable: there is no valid diagnosis.
    """
    found: dict[int, Diagnosis] = {}
    for item in listed(without_thought(answer), "turns"):
        number, verdict, cause = item.get("turn"), item.get("verdict"), words(item.get("cause"))
        if type(number) is not int or not 1 <= number <= turns:  # True is an int too
            continue
        if verdict in VERDICTS and (cause or verdict == GOOD):
            found.setdefault(number - 1, Diagnosis(verdict, cause, words(item.get("fix")) or None))
    if not found:
        raise Unreadable(f"no diagnosis in {answer[:200]!r}")
    return found
