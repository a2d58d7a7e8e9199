"""Trajectories as text: what teachers and judges read of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from hindsight.configs.schema import Feedback
from hindsight.envs.base import Observation
from hindsight.rollout.action_format import without_thought
from hindsight.rollout.types import Trajectory, Turn

ELLIPSIS = " … "
NONE = "(none)"
SHORTEST = 200  # characters of a trajectory that are always asked about
Show = Callable[[Observation], str]
Written = TypeVar("Written", bound=Sized)


def plain(observation: Observation) -> str:
    """An observation without its list of actions."""
    return observation.text.strip()


@dataclass(frozen=True)
class Style:
    """How trajectories are written down."""

    feedback: Feedback = field(default_factory=Feedback)
    show: Show = plain  # as the student was shown it: `Renderer.show`


def section(title: str, text: str) -> str | None:
    """A titled section; None where there is nothing to say."""
    return f"{title}\n{text.strip()}" if text.strip() else None


def transcript(turns: Sequence[Turn], rendering: str, first: int = 1) -> str:
    """Turns, numbered from `first`, by feedback.rendering: "responses" or "pairs"."""
    if rendering == "responses":
        lines = [f"Step {n}: {without_thought(t.response) or NONE}" for n, t in enumerate(turns, first)]
    else:
        lines = [
            f"Step {number} observation: {plain(turn.observation)}\n"
            f"Step {number} action: {turn.action or NONE}"
            for number, turn in enumerate(turns, first)
        ]
    return "\n".join(lines)


def outcome(trajectory: Trajectory) -> str:
    """How it ended, in a few words."""
    return f"{'success' if trajectory.success else 'failure'}, reward {trajectory.reward:.3g}"


def task(trajectory: Trajectory) -> str:
    """What the agent was told at the start."""
    first = trajectory.turns[0].observation
    return "\n\n".join(part for part in (first.rules.strip(), first.text.strip()) if part)


def steps(trajectory: Trajectory) -> list[str]:
    """Each turn with all that came of it: answer, output, reward, and the benchmark's further information."""
    blocks = []
    for number, turn in enumerate(trajectory.turns, start=1):
        output = turn.result.feedback.strip() or plain(turn.result.observation)
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


def shortened(texts: Sequence[str], characters: int) -> list[str]:
    """The texts, each cut in its middle to an equal share where together they are longer than that."""
    if sum(map(len, texts)) <= characters:
        return list(texts)
    share = max(2 * len(ELLIPSIS), characters // len(texts))
    return [text if len(text) <= share else _without_middle(text, share) for text in texts]


def fitting(write: Callable[[int], Written], room: int, characters: int) -> Written:
    """`write(characters)`, with fewer characters (at least SHORTEST) where it is longer than `room`."""
    while len(written := write(characters)) > room and characters > SHORTEST:
        characters = max(SHORTEST, characters * 3 // 4)  # halved, it could waste half of the room
    return written


def _without_middle(text: str, length: int) -> str:
    kept = length - len(ELLIPSIS)
    return text[: kept - kept // 2] + ELLIPSIS + text[len(text) - kept // 2 :]
