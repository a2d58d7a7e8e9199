"""HINT-SD's targets: corrections of the turns that caused a failure (arXiv 2605.17873). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hindsight.configs.setting import setting
from hindsight.feedback.reading import Note, Question, Reading, Unreadable, listed, words
from hindsight.feedback.source import Judged, JudgedSource
from hindsight.feedback.transcript import Style, outcome, section, steps, task
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Group, Trajectory

TITLE = "A review of your attempt, written when it had failed, says about your next turn:"
CUT = "[earlier turns omitted]\n"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "failures": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"turn": {"type": "integer"}, "correction": {"type": "string"}},
                "required": ["turn", "correction"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["failures"],
    "additionalProperties": False,
}
ONE = (
    "Find the first turn in which the agent made a mistake that caused this failure. Explain how to correct "
    "it in fewer than three sentences."
)
SEVERAL = (
    "Find the one to {most} turns in which the agent made the mistakes that caused this failure, earliest "
    "first. For each, explain how to correct that turn alone in fewer than three sentences."
)
FORM = 'Reply with JSON only: {"failures": [{"turn": 1, "correction": "…"}]}'


class Target(JudgedSource):
    """Corrections of the turns that caused a failure."""

    needs = "trajectory"

    @dataclass(frozen=True)
    class Settings(Judged):
        """Settings of HINT-SD's targets."""

        targets: int = setting(1, "turns of a failed trajectory that get a correction", low=1, high=3)

    settings: Target.Settings

    SCHEMA = SCHEMA

    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """Show the task, outcome and the end of the trajectory. Return None for a successful trajectory."""
        trajectory, most = group.trajectories[index], self.settings.targets
        if trajectory.success:
            return None
        find = ONE if most == 1 else SEVERAL.format(most=most)

        def write(characters: int) -> str:
            written = "\n\n".join(steps(trajectory))
            if len(written) > characters:
                written = CUT + written[-characters:]
            parts = [
                section("Task:", task(trajectory)),
                section("How it ended:", outcome(trajectory)),
                section("Attempt:", written),
                f"The attempt above failed. {find}\n{FORM}",
            ]
            return "\n\n".join(part for part in parts if part)

        return Question(write)

    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """Return the hints for at most `feedback.targets` turns, earliest first.

        An entry with an invalid turn or an empty correction is skipped and counted.

        Raises:
            Unreadable: no entry is left.
        """
        failures = listed(without_thought(answer), "failures")
        corrections: dict[int, str] = {}
        skipped = 0
        for item in failures:
            number, correction = item.get("turn"), words(item.get("correction"))
            if type(number) is not int or not 1 <= number <= len(trajectory.turns) or not correction:
                skipped += 1
            else:
                corrections.setdefault(number - 1, correction)
        if not corrections:
            raise Unreadable(f"no correction of turns 1 to {len(trajectory.turns)} in {answer[:200]!r}")
        kept = sorted(corrections.items())[: self.settings.targets]
        return Reading(
            {number: f"{TITLE}\n{correction}" for number, correction in kept},
            unreadable=skipped,
            notes={number: Note("target", correction) for number, correction in kept},
        )
