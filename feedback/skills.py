"""Skills from a file as hints: the same for all tasks of a type, as in SDAR and AgentOPSD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hindsight.configs.method import Feedback
from hindsight.configs.setting import setting
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.source import FeedbackSource
from hindsight.feedback.transcript import Style, section
from hindsight.rollout.types import Group, TurnAt

if TYPE_CHECKING:
    from hindsight.configs.schema import Config

TITLE = "What helps in tasks of this kind:"
SHIPPED = resources.files("hindsight.feedback") / "skill_files"  # one file per environment


class Skills(FeedbackSource):
    """The skills for a task's type, at each of its turns."""

    @dataclass(frozen=True)
    class Settings(Feedback):
        """Settings of the skills."""

        skills: str = setting(
            "",
            "YAML file with `general`, a text, and `kinds`, a text per task type; empty: the shipped one",
        )

        def problems(self, config: Config) -> Iterator[str]:
            yield from super().problems(config)
            try:
                load_skills(self.skills or str(SHIPPED / f"{config.env.name}.yaml"))
            except SkillsError as error:
                hint = "" if self.skills else f" (none is shipped for env.name = {config.env.name})"
                yield f"feedback.skills: {error}{hint}"

    needs = "trajectory"
    settings: Skills.Settings

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        file = self.settings.skills or str(SHIPPED / f"{group.task.env}.yaml")
        return section(TITLE, skills_for(group.task, load_skills(file)))


class SkillsError(ValueError):
    """A file of skills cannot be read; the message names it and says what it must hold."""


@cache
def load_skills(file: str) -> dict[str, Any]:
    """Read a file of skills.

    Raises:
        SkillsError: it is missing or has another form.
    """
    try:
        found = yaml.safe_load(Path(file).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SkillsError(f"{file} cannot be read: {error}") from error
    form = f"{file} must hold `general`, a text, and may hold `kinds`, a text for each task type"
    if not isinstance(found, dict) or set(found) - {"general", "kinds"}:
        raise SkillsError(form)
    kinds = found.get("kinds", {})
    if not isinstance(kinds, dict) or not all(
        isinstance(text, str) for text in (found.get("general"), *kinds.values())
    ):
        raise SkillsError(form)
    return {"general": found["general"], "kinds": kinds}


def skills_for(task: TaskSpec, skills: dict[str, Any]) -> str:
    """The general skills, then those of the task's type."""
    return "\n".join(
        part.strip() for part in (skills["general"], skills["kinds"].get(task.kind, "")) if part.strip()
    )
