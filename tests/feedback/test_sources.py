"""Which turns have hindsight, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import Feedback
from envs.base import Observation, StepResult
from envs.tasks import TaskSpec
from feedback.sources import IMMEDIATE_TITLE, hindsight
from rollout.types import Group, Span, TokenSequence, Trajectory, Turn

TASK = TaskSpec("t", "toy", "open", "train")


def turn(feedback, action="open door", valid=True):
    result = StepResult(Observation("later"), feedback, 0.0, False, False, False)
    span = None if action is None else Span(4, 6)
    return Turn(0, 3, 7, span, Observation("now"), f"<action>{action}</action>", action, valid, result, 0)


def group(*trajectories):
    sequence = TokenSequence(np.arange(8, dtype=np.int32), np.zeros(8, dtype=np.float32))
    made = (Trajectory(TASK, (sequence,), tuple(turns), False, 0.0, "truncated") for turns in trajectories)
    return Group(0, TASK, tuple(made))


def test_each_answered_turn_gets_its_own_feedback():
    texts = hindsight(group([turn("You open it."), turn("Locked.")], [turn("Dark.")]), Feedback())
    assert texts == {
        (0, 0): f"{IMMEDIATE_TITLE}\nYou open it.",
        (0, 1): f"{IMMEDIATE_TITLE}\nLocked.",
        (1, 0): f"{IMMEDIATE_TITLE}\nDark.",
    }


@pytest.mark.parametrize("silent", ["", "  \n "])
def test_no_feedback_no_context(silent):
    assert hindsight(group([turn(silent), turn("ok")]), Feedback()).keys() == {(0, 1)}


def test_action_that_did_not_parse_has_no_context():
    assert hindsight(group([turn("Your reply held no action.", action=None, valid=False)]), Feedback()) == {}


def test_inadmissible_action_has_a_context():
    texts = hindsight(group([turn("Nothing happens.", valid=False)]), Feedback())
    assert texts[0, 0].endswith("Nothing happens.")


def test_no_source_no_texts():
    assert hindsight(group([turn("You open it.")]), Feedback(source="none")) == {}
