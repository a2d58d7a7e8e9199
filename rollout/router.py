"""Assign episodes to engines."""

from __future__ import annotations

from collections import Counter


class Router:
    """Least-loaded placement with prefix affinity. The load of an engine is its number of episodes.

    An episode stays on its engine, which has its prefix cached. Episodes of one group start with the same
    prompt, so they share an engine while it has at most `slack` more episodes than the least loaded one.
    """

    def __init__(self, engines: int, slack: int = 4) -> None:
        self.loads = [0] * engines
        self.closed: set[int] = set()  # engines that get no episode
        self._slack = slack
        self._groups: dict[int, Counter[int]] = {}

    def place(self, group: int, avoid: int | None = None) -> int:
        """Assign an episode of a group to an engine and count it until `leave`.

        Args:
            group: the group's ordinal.
            avoid: the engine that just failed this episode; used only if there is no other.

        Raises:
            ValueError: every engine is closed.
        """
        opened = [engine for engine in range(len(self.loads)) if engine not in self.closed]
        others = [engine for engine in opened if engine != avoid] or opened
        reach = min(self.loads[engine] for engine in others) + self._slack
        here = self._groups.setdefault(group, Counter())
        near = [engine for engine in others if self.loads[engine] <= reach]
        engine = min(near, key=lambda engine: (not here[engine], self.loads[engine], engine))
        here[engine] += 1
        self.loads[engine] += 1
        return engine

    def leave(self, group: int, engine: int) -> None:
        """Remove a finished episode from the engine's load."""
        here = self._groups[group]
        here[engine] -= 1
        self.loads[engine] -= 1
        if not here.total():
            del self._groups[group]
