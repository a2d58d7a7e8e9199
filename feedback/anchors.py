"""Anchors: the turns of one task group that stood in the same state (GiGPO, arXiv 2505.10978; SERL)."""

from __future__ import annotations

from difflib import SequenceMatcher

from hindsight.rollout.types import Group, TurnAt


class AnchorError(ValueError):
    """An observation does not say which state it shows."""


def anchors(group: Group, similarity: float = 1.0) -> list[list[TurnAt]]:
    """The (trajectory, turn) members of each anchor, each turn of the group in exactly one.

    Turns are taken in (turn, trajectory) order, in which anchors and their members come out too. A turn joins
    the first anchor whose first member has its state; where there is none, it founds one. A turn after a
    malformed one stands in the state that the malformed one stood in.

    Args:
        similarity: 1 takes equal `state_key`s only; below 1, keys whose difflib ratio reaches it are equal.

    Raises:
        AnchorError: an observation has no `state_key`.
    """
    found: list[list[TurnAt]] = []
    place: dict[str, int] = {}  # state_key -> index in `found`; first fit puts equal keys together
    founders: list[SequenceMatcher[str]] = []
    for number, index in sorted(
        (number, index) for index, t in enumerate(group.trajectories) for number in range(len(t.turns))
    ):
        key = group.trajectories[index].turns[number].observation.state_key
        if not key:
            raise AnchorError(
                f"trajectory {index}, turn {number} of task {group.task.id}: the observation has no "
                "state_key, which anchors need: let the environment set one, or choose a method without them"
            )
        if key not in place:
            place[key] = _first_fit(key, founders, similarity)
        if place[key] == len(found):
            found.append([])
            # Without autojunk=False difflib leaves the frequent letters of a text of over 200 out.
            founders.append(SequenceMatcher(None, b=key, autojunk=False))
        found[place[key]].append((index, number))
    return found


def _first_fit(key: str, founders: list[SequenceMatcher[str]], similarity: float) -> int:
    """Index of the first anchor that `key` is similar to; one past the last where there is none."""
    for index, founder in enumerate(founders if similarity < 1 else []):
        founder.set_seq1(key)
        # Each bounds the next from above and costs less.
        bounds = (founder.real_quick_ratio, founder.quick_ratio, founder.ratio)
        if all(bound() >= similarity for bound in bounds):
            return index
    return len(founders)
