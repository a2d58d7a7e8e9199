"""Base classes of feedback sources, which write the hints that the teacher sees."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hindsight.configs.method import Feedback
from hindsight.configs.registry import FEEDBACK_SOURCES
from hindsight.feedback.reading import Question, Reading
from hindsight.feedback.transcript import Style
from hindsight.rollout.types import Group, Trajectory, TurnAt


class FeedbackSource:
    """A source of hints. The base class is `none`, which gives no hints; other sources override `hint`."""

    Settings: ClassVar[type[Feedback]] = Feedback
    settings: Feedback

    def __init__(self, settings: Feedback) -> None:
        self.settings = settings

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        """Return the teacher's hint about one turn, or None.

        Args:
            at: (trajectory, turn).
        """
        return None

    def pool(self, group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
        """Return one hint for turns in the same state, or None (`feedback.granularity=anchor`)."""
        return None


@dataclass(frozen=True)
class Pooled(Feedback):
    """Settings of a source that supports `feedback.granularity=anchor`."""

    pools: ClassVar[bool] = True


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


def make_source(settings: Feedback) -> FeedbackSource:
    """Create the source that `feedback.source` names."""
    kind: type[FeedbackSource] = FEEDBACK_SOURCES.find(settings.source)
    return kind(FEEDBACK_SOURCES.complete(settings))
