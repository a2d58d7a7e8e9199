"""A judge of rules for ALFWorld's tasks of a thing and a place or lamp, as an OpenAI-compatible endpoint.

The smallest model cannot judge, so the demo's runs of HERO and HINT-SD ask this instead of a model. It reads
the same question that a model would, follows what the agent saw turn by turn, and answers in the same form.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hindsight.envs.alfworld.expert import Wish, kind_of
from hindsight.envs.base import EnvError
from hindsight.rollout.action_format import find_action

TURN = re.compile(r"^Turn (\d+)\nAnswer: (.*?)\nEnvironment: (.*?)\nReward:", re.DOTALL | re.MULTILINE)
TASK = re.compile(r"Your task is to: [^.]*\.")
THING = re.compile(r"\ban? (\w+ \d+)")
REFUSED = "Nothing happens."
NO_USE = "inventory", "look", "examine", "help"
TARGETS = 3  # corrections of one attempt


@dataclass
class Attempt:
    """What the agent knows, followed turn by turn."""

    wish: Wish
    places: list[str]
    here: str = ""
    holding: str = ""
    seen: dict[str, set[str]] = field(default_factory=dict)  # place -> things
    closed: set[str] = field(default_factory=set)

    def find(self, kind: str) -> tuple[str, str] | None:
        """A thing of this kind that was seen, and where, other than where the task wants it."""
        found = (
            (one, place)
            for place, things in self.seen.items()
            for one in sorted(things)
            if kind_of(one) == kind and kind_of(place) != self.wish.parent
        )
        return next(found, None)

    @property
    def holds_it(self) -> bool:
        """Whether the agent holds what the task asks for."""
        return bool(self.holding) and kind_of(self.holding) == self.wish.target

    def sought(self) -> tuple[str, str] | None:
        """What the agent needs next, and where it was seen."""
        return self.find(self.wish.lamp if self.holds_it else self.wish.target)

    def next(self) -> str:
        """The action that leads on."""
        if self.holds_it and not self.wish.lamp:
            if self.here and kind_of(self.here) == self.wish.parent:
                return f"move {self.holding} to {self.here}"
            return "go to " + next(one for one in self.places if kind_of(one) == self.wish.parent)
        if found := self.sought():
            thing, place = found
            if place != self.here:
                return f"go to {place}"
            return f"use {thing}" if self.holds_it else f"take {thing} from {place}"
        if self.here in self.closed:
            return f"open {self.here}"
        return "go to " + next((one for one in self.places if one not in self.seen), self.places[0])

    def diagnose(self, action: str | None, reply: str) -> tuple[str, str]:
        """Verdict and cause of a turn; follows what it changed."""
        sought = None if self.holding and not self.holds_it else self.sought()
        leads = self.next()
        if action is None:
            return "invalid", "the answer holds no action."
        verb, _, rest = action.partition(" ")
        if reply.strip() == REFUSED:
            return "invalid", self._refused(verb, rest)
        known = dict(self.seen)
        self._follow(verb, rest, reply)
        if action == leads:
            return "good", ""
        if verb in NO_USE:
            return "unnecessary", "it shows nothing new."
        if verb == "take" and kind_of(rest.partition(" from ")[0]) != self.wish.target:
            return "wrong", f"the task asks for a {self.wish.target}."
        if sought and verb != "take":
            return "wrong", f"the {sought[0]} was seen at {sought[1]} and is left there."
        place = rest.removeprefix("to ")
        if verb == "go" and place in known and place not in self.closed:
            return "unnecessary", f"{place} has been looked at."
        if verb in ("move", "close", "use"):
            return (
                "wrong",
                f"this does not bring a {self.wish.target} to a {self.wish.parent or self.wish.lamp}.",
            )
        return "good", ""

    def _refused(self, verb: str, rest: str) -> str:
        thing, _, place = rest.replace(" from ", " to ").partition(" to ")
        place = place or thing.removeprefix("to ")
        if place not in self.places:
            return f"there is no {place or rest} here."
        if verb == "move" and thing != self.holding:
            return f"the agent does not hold {thing}."
        if verb == "take" and thing not in self.seen.get(place, ()):
            return f"no {thing} was seen at {place}."
        if verb == "go":
            return f"the agent is at {place} already."
        if place != self.here:
            return f"the agent is not at {place}."
        return "the environment does not allow it in this state."

    def _follow(self, verb: str, rest: str, reply: str) -> None:
        if verb == "go":
            self.here = rest.removeprefix("to ")
            if "is closed" in reply:
                self.closed.add(self.here)
        if verb == "open":
            self.closed.discard(rest)
        if verb in ("go", "open"):
            self.seen[self.here] = set(THING.findall(reply.partition("you see")[2]))
        if verb == "take":
            self.holding = rest.partition(" from ")[0]
            self.seen.get(self.here, set()).discard(self.holding)
        if verb == "move" and self.holding:
            self.seen.setdefault(self.here, set()).add(self.holding)
            self.holding = ""


def diagnoses(question: str) -> list[dict[str, Any]]:
    """Turn, verdict, cause and fix of each turn that a question shows; [] if it asks of something else."""
    task = TASK.search(question)
    try:
        wish = Wish.read(task[0] if task else "")
    except EnvError:
        return []
    if wish.two or wish.verb:
        return []
    around = re.search(r"you see (a .*?)\.\n", question)
    attempt = Attempt(wish, THING.findall(around[1]) if around else [])
    found = []
    for number, answer, reply in TURN.findall(question):
        fix = attempt.next()
        span = find_action(answer)
        verdict, cause = attempt.diagnose(answer[span.start : span.end] if span else None, reply)
        instead = None if verdict == "good" else fix
        found.append({"turn": int(number), "verdict": verdict, "cause": cause, "fix": instead})
    return found


def answer(question: str) -> str:
    """The answer to HERO's question, or to HINT-SD's."""
    found = diagnoses(question)
    if '"failures"' not in question:
        return json.dumps({"turns": found})
    bad = [one for one in found if one["verdict"] != "good"] or found[-1:]
    worst = [one for one in bad if one["verdict"] == "wrong"] or bad
    corrections = [
        {
            "turn": one["turn"],
            "correction": f"{one['cause'].capitalize()} Answer {one['fix']!r} instead.".lstrip()
            if one["fix"]
            else "No turn was left to end the task. Search fewer places before this one.",
        }
        for one in worst[:TARGETS]
    ]
    return json.dumps({"failures": corrections})


class Handler(BaseHTTPRequestHandler):
    """Answers chat completions."""

    def do_POST(self) -> None:
        """Answer the last message."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": answer(asked["messages"][-1]["content"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"id": "0", "object": "chat.completion", "created": 0, "model": asked["model"]} | {
            "choices": [choice]
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[str]:
    """Serve the judge on a free port of loopback; yields its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
