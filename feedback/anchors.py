"""Anchors: turns of one group in the same environment state (GiGPO, arXiv 2505.10978; SERL)."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import takewhile

from hindsight.rollout.types import Group, TurnAt

LONGEST = 1_000  # characters of a key up to which difflib, whose time grows with their square, compares it


class AnchorError(ValueError):
    """An observation has no state key."""


def anchors(group: Group, similarity: float = 1.0) -> list[list[TurnAt]]:
    """Return the (trajectory, turn) members of each anchor. Each turn of the group is in exactly one.

    Anchors and their members are in (turn, trajectory) order. A turn joins the first anchor whose first
    member has the same state, or starts a new anchor. A malformed turn does not change the state.

    Args:
        similarity: 1 matches equal `state_key`s only; below 1, the minimum difflib ratio of matching keys.
            Of keys longer than LONGEST, only what they begin and end with in common counts as equal.

    Raises:
        AnchorError: an observation has no `state_key`.
    """
    found: list[list[TurnAt]] = []
    place: dict[str, int] = {}  # state_key -> index in `found`
    founders: dict[str, SequenceMatcher[str]] = {}  # by their key
    for number, index in sorted(
        (number, index) for index, t in enumerate(group.trajectories) for number in range(len(t.turns))
    ):
        key = group.trajectories[index].turns[number].observation.state_key
        if not key:
            raise AnchorError(
                f"trajectory {index}, turn {number} of task {group.task.id}: the observation has no "
                "state_key, which anchors need. Set one in the environment or choose a method without anchors"
            )
        if key not in place:
            place[key] = _first_fit(key, founders, similarity)
        if place[key] == len(found):
            found.append([])
            # By default, difflib ignores frequent letters in texts of 200 or more characters.
            founders[key] = SequenceMatcher(None, b=key, autojunk=False)
        found[place[key]].append((index, number))
    return found


def _first_fit(key: str, founders: dict[str, SequenceMatcher[str]], similarity: float) -> int:
    """Return the index of the first anchor that `key` is similar to, or `len(founders)` if there is none."""
    for index, (other, founder) in enumerate(founders.items() if similarity < 1 else ()):
        if _similar(key, other, founder, similarity):
            return index
    return len(founders)


def _similar(key: str, other: str, founder: SequenceMatcher[str], least: float) -> bool:
    """Whether the share of equal characters is at least that. `founder` has seen `other`."""
    if max(len(key), len(other)) > LONGEST:
        start = _shared(key, other)
        end = _shared(key[start:][::-1], other[start:][::-1])
        return 2 * (start + end) >= least * (len(key) + len(other))
    founder.set_seq1(key)
    # Each is a cheaper upper bound on the next.
    return all(bound() >= least for bound in (founder.real_quick_ratio, founder.quick_ratio, founder.ratio))


def _shared(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
