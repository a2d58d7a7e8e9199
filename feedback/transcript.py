"""Trajectories as text for teachers and judges. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from hindsight.configs.schema import Feedback
from hindsight.envs.base import Observation
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Trajectory, Turn

ELLIPSIS = " … "
NONE = "(none)"
SHORTEST = 200  # minimum characters of a trajectory in a question
Show = Callable[[Observation], str]
Written = TypeVar("Written", bound=Sized)


def plain_text(observation: Observation) -> str:
    """Return an observation without its list of actions."""
    return observation.text.strip()


@dataclass(frozen=True)
class Style:
    """How to write a trajectory as text."""

    feedback: Feedback = field(default_factory=Feedback)
    show: Show = plain_text  # formats an observation as the student saw it (`Renderer.show`)


def section(title: str, text: str) -> str | None:
    """Return a titled section, or None if `text` is blank."""
    return f"{title}\n{text.strip()}" if text.strip() else None


def transcript(turns: Sequence[Turn], rendering: Literal["responses", "pairs"], first: int = 1) -> str:
    """Write turns as text, numbered from `first`."""
    if rendering == "responses":
        lines = [f"Step {n}: {without_thought(t.response) or NONE}" for n, t in enumerate(turns, first)]
    else:
        lines = [
            f"Step {number} observation: {plain_text(turn.observation)}\n"
            f"Step {number} action: {turn.action or NONE}"
            for number, turn in enumerate(turns, first)
        ]
    return "\n".join(lines)


def outcome(trajectory: Trajectory) -> str:
    """Describe success and reward in a few words."""
    return f"{'success' if trajectory.success else 'failure'}, reward {trajectory.reward:.3g}"


def task(trajectory: Trajectory) -> str:
    """Return the rules and the first observation."""
    first = trajectory.turns[0].observation
    return "\n\n".join(part for part in (first.rules.strip(), first.text.strip()) if part)


def steps(trajectory: Trajectory) -> list[str]:
    """Write each turn with its answer, environment output, reward and extra info from the environment."""
    blocks = []
    for number, turn in enumerate(trajectory.turns, start=1):
        output = turn.result.feedback.strip() or plain_text(turn.result.observation)
        lines = [
            f"Turn {number}",
            f"Answer: {without_thought(turn.response) or NONE}",
            f"Environment: {output or NONE}",
            f"Reward: {turn.result.reward:.3g}",
        ]
        if turn.result.info:
            lines.append(f"Info: {json.dumps(dict(turn.result.info), ensure_ascii=False, default=str)}")
        blocks.append("\n".join(lines))
    return blocks


def attempt_with(trajectory: Trajectory, request: str) -> Callable[[int], str]:
    """The task, every turn and the outcome, then a request: as a function of the characters for the turns."""

    def write(characters: int) -> str:
        parts = [
            section("Task:", task(trajectory)),
            *shortened(steps(trajectory), characters),
            section("How it ended:", outcome(trajectory)),
            request,
        ]
        return "\n\n".join(part for part in parts if part)

    return write


def shortened(texts: Sequence[str], characters: int) -> list[str]:
    """Cut the middle of long texts so that all have about `characters` together. Each gets an equal share."""
    if sum(map(len, texts)) <= characters:
        return list(texts)
    share = max(2 * len(ELLIPSIS), characters // len(texts))
    return [text if len(text) <= share else _without_middle(text, share) for text in texts]


def shorten_to_fit(write: Callable[[int], Written], room: int, characters: int) -> Written:
    """Return `write(characters)`, reducing `characters` (at least SHORTEST) until the result fits `room`."""
    while len(written := write(characters)) > room and characters > SHORTEST:
        characters = max(SHORTEST, characters * 3 // 4)  # halving could waste half of the room
    return written


def _without_middle(text: str, length: int) -> str:
    kept = length - len(ELLIPSIS)
    return text[: kept - kept // 2] + ELLIPSIS + text[len(text) - kept // 2 :]
