"""Which trajectories of a group can be asked about while others are still running. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from hindsight.configs.method import Feedback
from hindsight.rollout.types import Failure, Trajectory

# What must be over before a trajectory is asked about: itself; it and whatever may come first as its
# successful sibling; or the group.
Needs = Literal["trajectory", "sibling", "group"]
ORDER: tuple[Needs, ...] = ("trajectory", "sibling", "group")  # each includes those before it
Episodes = Sequence[Trajectory | Failure | None]  # of a group; None: not over


def hints_need(sources: Iterable[Needs], settings: Feedback) -> Needs:
    """What hints need, given what each of their sources needs (`FeedbackSource.needs`)."""
    if settings.granularity == "anchor":
        return "group"
    return max(sources, key=ORDER.index, default="trajectory")


def ready_parts(episodes: Episodes, needs: Needs) -> list[tuple[int, ...]]:
    """The trajectories that can be asked about now, together with those in the same part.

    Later calls, when more episodes are over, return the same parts and perhaps more.
    """
    played = tuple(index for index, one in enumerate(episodes) if isinstance(one, Trajectory))
    match needs:
        case "trajectory":
            return [(index,) for index in played]
        case "sibling":
            return [(index,) for index in played if sibling_is_known(episodes, index)]
        case "group":
            return [played] if played and all(one is not None for one in episodes) else []


def sibling_is_known(episodes: Episodes, index: int) -> bool:
    """Whether it is settled which other trajectory is the first successful one, if any."""
    for other, one in enumerate(episodes):
        if other != index and one is None:
            return False
        if other != index and isinstance(one, Trajectory) and one.success:
            return True
    return True
