"""Base classes of feedback sources, which write the hints that the teacher sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hindsight.configs.method import Feedback
from hindsight.configs.registry import FEEDBACK_SOURCES
from hindsight.configs.setting import setting
from hindsight.feedback.needs import Needs
from hindsight.feedback.reading import Question, Reading
from hindsight.feedback.transcript import Style, section
from hindsight.rollout.types import Group, Trajectory, TurnAt


class FeedbackSource:
    """A source of hints."""

    Settings: ClassVar[type[Feedback]] = Feedback
    # "trajectory" if a turn's hint is made from its own trajectory, the task and the reference solution
    # alone, "sibling" if also from a success that `sources.sibling` picks: it can then be written while
    # other episodes of the group are played.
    needs: ClassVar[Needs] = "group"
    settings: Feedback

    def __init__(self, settings: Feedback) -> None:
        self.settings = settings

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        """Return the teacher's hint about one turn, or None.

        Args:
            at: (trajectory, turn).
        """
        return None


@dataclass(frozen=True)
class Pooled(Feedback):
    """Settings of a source that supports `feedback.granularity=anchor`."""

    pools: ClassVar[bool] = True

    similarity: float = setting(
        1.0, "anchor: minimum difflib ratio of two equal states; 1 is an exact match", low=0.0, high=1.0
    )


class PooledSource(FeedbackSource):
    """A source of one text about a turn, which anchors show below an action that was tried."""

    Settings = Pooled
    TITLE: ClassVar[str]  # above the text as the hint of its own turn
    LABEL: ClassVar[str]  # before the text about one try

    @abstractmethod
    def text(self, group: Group, at: TurnAt, style: Style) -> str:
        """Return the text about one turn, without a title; blank if there is none."""

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        return section(self.TITLE, self.text(group, at, style))

    def picks(self, group: Group, tries: Sequence[TurnAt]) -> dict[str, TurnAt]:
        """Return the tries of an action whose text an anchor shows, by what they are."""
        return {"best outcome": best(group, tries), "worst outcome": worst(group, tries)}


def best(group: Group, tries: Sequence[TurnAt]) -> TurnAt:
    """Return the earliest of the tries whose trajectories ended best."""
    return max(tries, key=lambda at: _outcome(group, at))


def worst(group: Group, tries: Sequence[TurnAt]) -> TurnAt:
    """Return the earliest of the tries whose trajectories ended worst."""
    return min(tries, key=lambda at: _outcome(group, at))


def _outcome(group: Group, at: TurnAt) -> tuple[bool, float]:
    trajectory = group.trajectories[at[0]]
    return trajectory.success, trajectory.reward


@dataclass(frozen=True)
class Judged(Feedback):
    """Settings of a source that needs a judge (see the `judge` settings)."""

    judged: ClassVar[bool] = True


class JudgedSource(FeedbackSource):
    """A source that asks a judge about each trajectory and parses hints from its answer."""

    Settings = Judged
    SCHEMA: ClassVar[Mapping[str, Any] | None] = None  # JSON schema of the answer; None for plain text

    @abstractmethod
    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """Return the question about the trajectory at `index`, or None to skip it."""

    @abstractmethod
    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """Parse the hints from an answer.

        Raises:
            Unreadable: the answer cannot be parsed.
        """

    def conclusion(self, group: Group, readings: Mapping[int, Reading], style: Style) -> Question | None:
        """Return a last question about the whole group, or None. Its answer replaces the hints read so far.

        Args:
            readings: by trajectory, what was read in the answers.
        """
        return None

    def conclude(self, answer: str, group: Group, style: Style) -> dict[TurnAt, str]:
        """Parse the hints of all trajectories from the answer to `conclusion`.

        Raises:
            Unreadable: the answer cannot be parsed.
        """
        raise NotImplementedError(f"{type(self).__name__} asks a last question and does not read its answer")


def make_sources(settings: Feedback) -> list[FeedbackSource]:
    """Create the sources that `feedback.sources` names, in their order."""
    complete = FEEDBACK_SOURCES.complete(settings)
    return [FEEDBACK_SOURCES.find(name)(complete) for name in settings.sources]
