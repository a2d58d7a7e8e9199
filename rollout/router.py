"""Which engine an episode plays on."""

from __future__ import annotations

from collections import Counter


class Router:
    """Least-loaded placement with prefix affinity; load is the number of episodes placed.

    An episode keeps its engine from its first turn to its last, since that engine has its prefix cached.
    Episodes of one group start with the same prompt, so they gather on an engine as long as it is at most
    `slack` episodes ahead of the least loaded one.
    """

    def __init__(self, engines: int, slack: int = 4) -> None:
        self.loads = [0] * engines
        self._slack = slack
        self._groups: dict[int, Counter[int]] = {}

    def place(self, group: int, avoid: int | None = None) -> int:
        """Choose an engine for an episode of a group and count it there until `leave`.

        Args:
            group: the group's ordinal.
            avoid: the engine that just failed this episode; taken only where there is no other.
        """
        others = [engine for engine in range(len(self.loads)) if engine != avoid] or [0]
        reach = min(self.loads[engine] for engine in others) + self._slack
        here = self._groups.setdefault(group, Counter())
        near = [engine for engine in others if self.loads[engine] <= reach]
        engine = min(near, key=lambda engine: (not here[engine], self.loads[engine], engine))
        here[engine] += 1
        self.loads[engine] += 1
        return engine

    def leave(self, group: int, engine: int) -> None:
        """The episode is over."""
        here = self._groups[group]
        here[engine] -= 1
        self.loads[engine] -= 1
        if not here.total():
            del self._groups[group]
