"""A hand-made group: three attempts at one task, and helpers that show their texts to a person."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from hindsight.configs.registry import FEEDBACK_SOURCES
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import JudgeError
from hindsight.feedback.reading import Question
from hindsight.rollout.types import Group, Span, TokenSequence, Trajectory, Turn

GOLDEN = Path(__file__).parent / "golden"
TASK = TaskSpec("kitchen-7", "toy", "find", "train")
ACTIONS = ("go to desk 1", "go to fridge 1", "open fridge 1", "take mug 1")
ROOM = "You are in the middle of a room. You see a desk 1 and a fridge 1.\n\nYour task is to: take the mug."
FRIDGE = "You arrive at fridge 1. The fridge 1 is closed."
OPEN = "You open the fridge 1. In it, you see a mug 1."
DESK = "You arrive at desk 1. On it, you see nothing."
WON = "You take the mug 1. You have won."
NOTHING = "Nothing happens."
UNREAD = "Your reply contained no action of the form <action>…</action>."


def seen(text, key=None):
    rules = "You act in a text world." if text == ROOM else ""
    return Observation(text, ACTIONS, text if key is None else key, rules=rules)


def show(observation):
    """As `Renderer.show` does."""
    return f"{observation.text}\nActions: {', '.join(observation.actions)}"


def turn(before, action, feedback, after=None, reward=0.0, thought="", info=None):
    """A turn that stood before the text `before`; `action` None did not parse."""
    response = "I will look around." if action is None else f"<action>{action}</action>"
    response = f"<think>{thought}</think>{response}" if thought else response
    result = StepResult(
        seen(after or feedback), feedback, reward, reward == 1.0, False, reward == 1.0, info or {}
    )
    span = None if action is None else Span(4, 6)
    return Turn(0, 3, 7, span, seen(before), response, action, action in ACTIONS, result)


def trajectory(*turns):
    sequence = TokenSequence(np.arange(8, dtype=np.int32), np.zeros(8, np.float32), np.zeros(8, np.int32))
    last = turns[-1].result
    return Trajectory(
        TASK, (sequence,), turns, last.success, last.reward, "terminated" if last.terminated else "truncated"
    )


def group(*trajectories, reference=()):
    return Group(0, TASK, trajectories, reference=reference)


def kitchen():
    """0 fails with a wrong way, an unread answer and an action that is not possible; 1 and 2 succeed and fail
    from the same fridge."""
    return group(
        trajectory(
            turn(ROOM, "go to desk 1", DESK, thought="The desk may hold it."),
            turn(DESK, None, UNREAD, after=DESK),
            turn(DESK, "take mug 1", NOTHING, after=DESK, info={"steps": 3}),
        ),
        trajectory(
            turn(ROOM, "go to fridge 1", FRIDGE),
            turn(FRIDGE, "open fridge 1", OPEN, thought="It is closed."),
            turn(OPEN, "take mug 1", WON, reward=1.0),
        ),
        trajectory(
            turn(ROOM, "go to fridge 1", FRIDGE),
            turn(FRIDGE, "take mug 1", NOTHING, after=FRIDGE),
            turn(FRIDGE, "open fridge 1", OPEN, reward=0.25),
        ),
        reference=("go to fridge 1", "open fridge 1", "take mug 1"),
    )


def feedback(source="immediate", **settings):
    """The section `feedback` of a configuration that names these sources, parted by blanks."""
    names = source.split()
    return FEEDBACK_SOURCES.settings(*names)(sources=names, **settings)


def written(texts):
    """Every text once, with the turns that have it, for a person."""
    owners = {}
    for (index, number), text in sorted(texts.items()):
        owners.setdefault(text, []).append(f"{index}.{number}")
    parts = (f"══ trajectory.turn {', '.join(turns)} ══\n{text}" for text, turns in owners.items())
    return "\n\n".join(parts) + "\n"


def golden(name):
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def worded(words, tokens=0):
    """A question that no room shortens."""
    return Question(lambda characters: words, tokens)


def ask(client, *questions, schema=None):
    """Ask questions, or words, at once; each comes back as its answer or its JudgeError."""

    async def one(question):
        try:
            return (await client(worded(question) if isinstance(question, str) else question, schema)).text
        except JudgeError as error:
            return error

    async def run():
        answers = await asyncio.gather(*map(one, questions))
        await client.close()
        return answers

    return asyncio.run(run())


WHY = worded("Why?")
