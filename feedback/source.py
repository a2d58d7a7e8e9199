"""What every feedback source is: it writes the hints that the teacher sees."""

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
    """A source of hints. This one, `none`, has none; others override `hint`."""

    Settings: ClassVar[type[Feedback]] = Feedback
    settings: Feedback

    def __init__(self, settings: Feedback) -> None:
        self.settings = settings

    def hint(self, group: Group, at: TurnAt, style: Style) -> str | None:
        """What the teacher is shown about one turn; None: nothing.

        Args:
            at: (trajectory, turn).
        """
        return None

    def pool(self, group: Group, members: Sequence[TurnAt], style: Style) -> str | None:
        """What the teacher is shown about turns in the same state, with `feedback.granularity=anchor`."""
        return None


@dataclass(frozen=True)
class Pooled(Feedback):
    """Settings of a source whose hints `feedback.granularity=anchor` can merge."""

    pools: ClassVar[bool] = True


@dataclass(frozen=True)
class Judged(Feedback):
    """Settings of a source whose hints a model writes, see `judge`."""

    judged: ClassVar[bool] = True


class JudgedSource(FeedbackSource):
    """A source that asks a model about each trajectory and reads hints in its answer."""

    Settings = Judged
    SCHEMA: ClassVar[Mapping[str, Any] | None] = None  # JSON schema of the answer; None asks for plain text

    @abstractmethod
    def question(self, group: Group, index: int, style: Style) -> Question | None:
        """What to ask about the trajectory at `index`; None: nothing."""

    @abstractmethod
    def read(self, answer: str, trajectory: Trajectory, style: Style) -> Reading:
        """The hints in an answer.

        Raises:
            Unreadable: there are none.
        """


def make_source(settings: Feedback) -> FeedbackSource:
    """The source that `feedback.source` names."""
    kind: type[FeedbackSource] = FEEDBACK_SOURCES.find(settings.source)
    return kind(FEEDBACK_SOURCES.complete(settings))
