"""HERO's reflection: a diagnosis of each turn, once its trajectory has ended (arXiv 2606.11559). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hindsight.configs.setting import setting
from hindsight.feedback.reading import Question, Reading, Unreadable, listed, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.sources import NEXT_TITLE
from hindsight.feedback.transcript import ELLIPSIS, Style, outcome, section, shortened, steps, task
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory

GOOD = "good"
VERDICTS = (GOOD, "unnecessary", "invalid", "wrong")
LONGEST = 60  # words of one diagnosis
TURN_TOKENS = 100  # of one diagnosis with its JSON
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
    "You see how the attempt ended. Look back and diagnose each of its {turns} turns: was the action needed, "
    "was it valid, and if it did not help, why?\n"
    'Reply with JSON only, {{"turns": [{{"turn": 1, "verdict": "…", "cause": "…", "fix": "…"}}, …]}}, '
    "with one object for each turn.\n"
    "- verdict: good (it helped), unnecessary (it changed nothing that matters), invalid (the environment "
    "did not take it) or wrong (it led away from the goal).\n"
    "- cause: why it deserves that verdict; empty for a good one.\n"
    "- fix: what to answer instead, or null.\n"
    "At most {words} words a turn."
)


@dataclass(frozen=True)
class Diagnosis:
    """What was wrong with one turn."""

    verdict: str  # one of VERDICTS
    cause: str
    fix: str | None

    def text(self) -> str:
        """In at most LONGEST words."""
        said = f"{self.verdict}: {self.cause}" + (f" Better: {self.fix}" if self.fix else "")
        kept = said.split()
        return said if len(kept) <= LONGEST else " ".join(kept[:LONGEST]) + ELLIPSIS.rstrip()


class Reflect(JudgedSource):
    """A diagnosis of each turn."""

    @dataclass(frozen=True)
    class Settings(Judged):
        """Of HERO's reflection."""

        observation: bool = setting(True, "show the next observation above the diagnosis")

        @property
        def summary(self) -> str:
            return "reflect, per step" if self.observation else "reflect without the observation, per step"

    settings: Reflect.Settings

    SCHEMA = SCHEMA

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """Task, every turn, and how it ended. The answer grows with the turns."""
        trajectory = group.trajectories[index]
        turns = len(trajectory.turns)

        def write(characters: int) -> str:
            parts = [
                section("Task:", task(trajectory)),
                *shortened(steps(trajectory), characters),
                section("How it ended:", outcome(trajectory)),
                REQUEST.format(turns=turns, words=LONGEST),
            ]
            return "\n\n".join(part for part in parts if part)

        return Question(write, tokens=TURN_TOKENS * turns)

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """The teacher's sections: next observation, diagnosis, final reward. A turn judged good gets none.

        Raises:
            Unreadable: no turn has a diagnosis.
        """
        found = diagnoses(answer, len(trajectory.turns))
        texts = {
            number: self._section(trajectory, number, diagnosis, style)
            for number, diagnosis in sorted(found.items())
            if diagnosis.verdict != GOOD
        }
        return Reading(texts, unreadable=len(trajectory.turns) - len(found))

    def _section(self, trajectory: Trajectory, number: int, diagnosis: Diagnosis, style: Style) -> str:
        seen = style.show(trajectory.turns[number].result.observation) if self.settings.observation else ""
        parts = [
            section(NEXT_TITLE, seen),
            section(DIAGNOSIS_TITLE, diagnosis.text()),
            f"{REWARD_TITLE} {trajectory.reward:.3g}",
        ]
        return "\n\n".join(part for part in parts if part)


def diagnoses(answer: str, turns: int) -> dict[int, Diagnosis]:
    """Turn (from 0) -> its diagnosis; the first of several. What is not a diagnosis of a turn is left out.

    Raises:
        Unreadable: there is none at all.
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
