"""Expert policies for ALFWorld demonstrations.

`SearchExpert` knows what an agent knows: texts and admissible actions. It looks through the room in an order
drawn at random (where such an object may lie before elsewhere, open surfaces before closed ones), so that a
policy that imitates it explores, and RL finds out where to look first. It remembers what it saw, and carries
the target to what the task asks for. Steps taken by someone else (noise) only change what it has seen.
`UpstreamExpert` is ALFWorld's own handcoded player.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from alfworld.agents.expert import HandCodedAgentFailed, HandCodedTWAgent
from alfworld.gen import constants
from textworld.core import GameState

from hindsight.envs.base import EnvError, Observation

OPENABLE = {name.lower() for name in constants.OPENABLE_CLASS_LIST}
HOLDS = {r.lower(): {o.lower() for o in objects} for r, objects in constants.VAL_RECEPTACLE_OBJECTS.items()}
Verb = Literal["clean", "heat", "cool"]  # what is done to an object before it is put somewhere
TOOLS: dict[Verb, str] = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
VERBS: dict[str, Verb] = {"clean": "clean", "heat": "heat", "hot": "heat", "cool": "cool"}  # as tasks put it
SENTENCES = [  # upstream's templates, the special before the general
    r"put (?P<two>two) (?P<target>\w+) in (?P<parent>\w+)",
    r"find (?P<two>two) (?P<target>\w+) and put them in (?P<parent>\w+)",
    r"(?P<verb>clean|heat|cool) some (?P<target>\w+) and put it in (?P<parent>\w+)",
    r"put a (?P<state>clean|hot|cool) (?P<target>\w+) in (?P<parent>\w+)",
    r"put (?:a|some) (?P<target>\w+) (?:in|on) (?P<parent>\w+)",
    r"(?:look at|examine the) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)",
]
THING = re.compile(r"\ba ([a-z]+ \d+)")
CONTENTS = re.compile(r"(?:On the ([a-z]+ \d+), you see|The ([a-z]+ \d+) is open\. In it, you see)([^.]*)")
TAKEN = re.compile(r"You pick up the ([a-z]+ \d+) from the ([a-z]+ \d+)")
PLACED = re.compile(r"You (?:move|put) the ([a-z]+ \d+) (?:to|in/on) the ([a-z]+ \d+)")
TREATED = re.compile(r"You (clean|heat|cool) the ([a-z]+ \d+)")


def kind_of(thing: str) -> str:
    """`cabinet 3` -> `cabinet`."""
    return thing.rsplit(" ", 1)[0]


@dataclass(frozen=True)
class Wish:
    """What the task sentence asks for."""

    target: str
    parent: str = ""  # where to; empty under a lamp
    lamp: str = ""
    verb: Verb | None = None
    two: bool = False

    @classmethod
    def read(cls, text: str) -> Wish:
        """The wish in an episode's first observation.

        Raises:
            EnvError: the task description matches none of the upstream templates.
        """
        task = text.partition("Your task is to: ")[2].strip().rstrip(".")
        for sentence in SENTENCES:
            if found := re.fullmatch(sentence, task):
                parts = {"parent": "", "lamp": "", "verb": "", "state": "", "two": "", **found.groupdict()}
                verb = VERBS.get(parts["verb"] or parts["state"])
                return cls(parts["target"], parts["parent"], parts["lamp"], verb, bool(parts["two"]))
        raise EnvError(f"no demonstration: the task {task!r} follows none of ALFWorld's templates")


class Expert(ABC):
    """A player; `act` and `see` take turns."""

    @abstractmethod
    def act(self, observation: Observation) -> str:
        """The admissible action it wants to take now."""

    @abstractmethod
    def see(self, action: str, feedback: str) -> None:
        """Take note of what an action, its own or not, led to."""


class SearchExpert(Expert):
    """Searches the room receptacle by receptacle; see the module docstring."""

    def __init__(self, first: Observation, rng: Random | None = None) -> None:
        """`rng` shuffles the order of the search, which is else that of the first observation."""
        self.wish = Wish.read(first.text)
        self.receptacles = THING.findall(first.text.partition("Your task is to: ")[0])
        if rng is not None:
            rng.shuffle(self.receptacles)
        self.seen: dict[str, list[str]] = {}  # receptacle -> its contents, once looked into
        self.treated: dict[str, str] = {}  # object -> what was done to it last
        self.held: str | None = None
        self.origin = ""  # where the held object was taken

    def see(self, action: str, feedback: str) -> None:
        if found := CONTENTS.search(feedback):
            self.seen[found[1] or found[2]] = THING.findall(found[3])
        elif found := TAKEN.search(feedback):
            self.held, self.origin = found[1], found[2]
            if self.held in self.seen.get(self.origin, []):
                self.seen[self.origin].remove(self.held)
        elif found := PLACED.search(feedback):
            self.held = None
            self.seen.setdefault(found[2], []).append(found[1])
        elif found := TREATED.search(feedback):
            self.treated[found[2]] = found[1]

    def act(self, observation: Observation) -> str:
        return self._wanted(observation.actions) or "look"

    def _wanted(self, actions: tuple[str, ...]) -> str | None:
        wish, held = self.wish, self.held
        if held is None:
            done = self._goal() if wish.two else ""
            return self._reach(wish.target, "take {thing} from {place}", actions, done)
        if kind_of(held) != wish.target:
            return self._put(held, self.origin, actions)
        if wish.lamp:
            return self._reach(wish.lamp, "use {thing}", actions)
        if wish.verb and self.treated.get(held) != wish.verb:
            tool = next(place for place in self.receptacles if kind_of(place) == TOOLS[wish.verb])
            return self._at(tool, (f"{wish.verb} {held} with {tool}",), actions)
        return self._put(held, self._goal(), actions)

    def _reach(self, kind: str, command: str, actions: tuple[str, ...], skip: str = "") -> str | None:
        """Give the command where such a thing was seen, or look for one."""
        for place, things in self.seen.items():
            thing = next((o for o in things if kind_of(o) == kind), None)
            if thing and place != skip:
                return self._at(place, (command.format(thing=thing, place=place),), actions)
        return self._search(kind, actions, skip)

    def _put(self, thing: str, place: str, actions: tuple[str, ...]) -> str | None:
        return self._at(place, (f"move {thing} to {place}", f"put {thing} in/on {place}"), actions)

    def _at(self, place: str, wanted: tuple[str, ...], actions: tuple[str, ...]) -> str | None:
        """The next action on the way to one of the `wanted` at a receptacle; None: it can't be done there."""
        # Where one stands, `go to` is not admissible, also for other receptacles used from the same pose.
        return next((a for a in (*wanted, f"go to {place}", f"open {place}") if a in actions), None)

    def _search(self, kind: str, actions: tuple[str, ...], skip: str) -> str:
        """Look into the next receptacle; from the start once all were seen."""

        def unlikely(place: str) -> tuple[bool, bool, bool]:
            barred = kind not in HOLDS.get(kind_of(place), set())
            return barred, f"go to {place}" in actions, kind_of(place) in OPENABLE

        if not set(self.receptacles) - set(self.seen) - {skip}:
            self.seen = {place: things for place, things in self.seen.items() if place == skip}
        place = min((p for p in self.receptacles if p not in self.seen and p != skip), key=unlikely)
        return self._at(place, (), actions) or f"examine {place}"

    def _goal(self) -> str:
        """The receptacle to place targets in; the same one for both of two."""
        parents = [place for place in self.receptacles if kind_of(place) == self.wish.parent]
        return max(parents, key=lambda p: sum(kind_of(o) == self.wish.target for o in self.seen.get(p, [])))


class UpstreamExpert(Expert):
    """ALFWorld's handcoded agent, fixed: its bookkeeping waits for `put`, the verb of older game files.

    It also reads facts from the game's state: what is held, what is clean, hot or cool, what lies in the
    target receptacle.
    """

    def __init__(self, game: Path, state: Callable[[], GameState]) -> None:
        self._state = state
        self._agent = HandCodedTWAgent(max_steps=200)
        self._agent.reset(str(game))
        self._agent.observe(state()["feedback"])
        self._last = ""
        policy = self._agent.policy
        track = policy.update_state_tracking
        policy.update_state_tracking = lambda state, last: track(
            state, re.sub(r"^move (.*) to ", r"put \1 in/on ", last)
        )

    def act(self, observation: Observation) -> str:
        if not self._last:
            return "look"
        try:
            action = self._agent.act(self._state(), 0, False, self._last)
        except (HandCodedAgentFailed, IndexError):  # it picks from empty lists where its plan breaks down
            return "look"
        return action if action in observation.actions else "look"

    def see(self, action: str, feedback: str) -> None:
        self._last = action
