"""Control arms: what is left of a gain when the hint says nothing about the turn. Pure.

other_task     the hints of another task's group: the same form and length (arXiv 2608.09228)
no_hindsight   the teacher sees the student's own prompt, so only its older weights differ (2609.20612)
random_turns   the hints of each trajectory, at turns drawn at random
shuffled       each turn's log-ratios of teacher and student, permuted over its scored tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice

import numpy as np

from hindsight.configs.schema import Config
from hindsight.rollout.types import Group, TurnAt


class Control:
    """The control arm that `feedback.control` names; `none` changes nothing."""

    def __init__(self, config: Config) -> None:
        self.kind, self.seed = config.feedback.control, config.seed
        self.whole_turns = config.signal.tokens == "response"
        self._seen: dict[str, list[str]] = {}  # hints of the last two tasks

    def hints(self, group: Group, texts: dict[TurnAt, str]) -> dict[TurnAt, str]:
        """The hints that the teacher is shown in place of a group's own."""
        if self.kind == "no_hindsight":
            return without_hindsight(texts)
        if self.kind == "random_turns":
            return at_random_turns(texts, group, self.whole_turns, self.seed)
        if self.kind == "other_task":
            return of_other_task(texts, self._other(group.task.id, texts))
        return texts

    def logprobs(
        self, group: Group, teacher: Sequence[np.ndarray], student: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """The teacher's log-probs of each scored span, given those of the rollout there."""
        if self.kind != "shuffled":
            return list(teacher)
        rng = np.random.default_rng((self.seed, group.ordinal))
        return [shuffled(*pair, rng) for pair in zip(teacher, student, strict=True)]

    def _other(self, task: str, texts: Mapping[TurnAt, str]) -> list[str]:
        """The hints of the last group of another task; none for the first group of a run."""
        others = [own for seen, own in self._seen.items() if seen != task]
        if texts:
            latest = [(seen, own) for seen, own in self._seen.items() if seen != task][-1:]
            self._seen = dict([*latest, (task, list(texts.values()))])
        return others[-1] if others else []


def of_other_task(texts: Mapping[TurnAt, str], other: Sequence[str]) -> dict[TurnAt, str]:
    """The same turns with the hints of another group, which are repeated if there are too few.

    A hint that says the same as the turn's own is passed over. A turn for which no other is left has none.
    """
    found, others = {}, cycle(other)
    for at, own in texts.items():
        tried = islice(others, len(other))
        if text := next((one for one in tried if one != own), ""):
            found[at] = text
    return found


def without_hindsight(texts: Mapping[TurnAt, str]) -> dict[TurnAt, str]:
    """The same turns with empty hints, which `build_requests` leaves out."""
    return dict.fromkeys(texts, "")


def at_random_turns(
    texts: Mapping[TurnAt, str], group: Group, whole_turns: bool, seed: int
) -> dict[TurnAt, str]:
    """The hints of each trajectory at other turns, drawn without replacement from those that may have one.

    Where every turn has a hint, they change places.

    Args:
        whole_turns: whether a turn that did not parse may have one.
        seed: of the run; a group's draw depends on it and the group's ordinal.
    """
    rng, moved = np.random.default_rng((seed, group.ordinal)), {}
    for index, trajectory in enumerate(group.trajectories):
        own = [text for (owner, _), text in texts.items() if owner == index]
        free = [n for n, turn in enumerate(trajectory.turns) if whole_turns or turn.action_span is not None]
        for number, text in sorted(zip(rng.permutation(free)[: len(own)].tolist(), own, strict=True)):
            moved[index, number] = text
    return moved


def shuffled(teacher: np.ndarray, student: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) log-probs of the teacher whose differences from the student's are permuted."""
    return student + rng.permutation(teacher - student)
