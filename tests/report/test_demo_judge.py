"""The demo's judge of rules answers HERO's and HINT-SD's questions in their form."""

from __future__ import annotations

import json

import httpx
import pytest
from benchmarks.demo_judge import answer, diagnoses, served

from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.reflect import Reflect
from hindsight.feedback.source import JudgedSource
from hindsight.feedback.target import Target
from hindsight.feedback.transcript import Style
from hindsight.rollout.types import Group, Trajectory, Turn

ROOM = (
    "-= Welcome =-\n\nYou are in the middle of a room. Looking quickly around you, you see a cabinet 2, "
    "a cabinet 1, and a countertop 1.\n\nYour task is to: put a candle in countertop."
)
PLAYED = [
    ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed.", "good"),
    ("open cabinet 1", "You open the cabinet 1. The cabinet 1 is open. In it, you see a candle 1.", "good"),
    ("take mug 1 from cabinet 1", "Nothing happens.", "invalid"),
    (None, "Answer with one action.", "invalid"),
    ("go to cabinet 2", "You arrive at cabinet 2. The cabinet 2 is closed.", "wrong"),
    ("go to cabinet 1", "You arrive at cabinet 1. On the cabinet 1, you see a candle 1.", "good"),
    ("take candle 1 from cabinet 1", "You pick up the candle 1 from the cabinet 1.", "good"),
    ("look", "You are facing the cabinet 1.", "unnecessary"),
    ("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see nothing.", "good"),
    ("move candle 1 to countertop 1", "You move the candle 1 to the countertop 1.", "good"),
]


def attempt(success: bool) -> Trajectory:
    seen = Observation(ROOM)
    turns = []
    for action, reply, _ in PLAYED:
        result = StepResult(Observation(reply), reply, 0.0, False, False, success)
        response = f"<action>{action}</action>" if action else "hm"
        turns.append(Turn(0, 0, 1, None, seen, response, action, True, result))
        seen = result.observation
    task = TaskSpec("t", "alfworld", "pick", "train")
    return Trajectory(task, (), tuple(turns), success, float(success), "terminated")


def ask(source: JudgedSource, success: bool) -> str | None:
    question = source.question(Group(0, attempt(success).task, (attempt(success),)), 0, Style())
    return question and question.write(12_000)


def test_heros_question_gets_a_diagnosis_of_each_turn() -> None:
    source = Reflect(Reflect.Settings())
    question = ask(source, True)
    assert question is not None
    assert [one["verdict"] for one in diagnoses(question)] == [verdict for *_, verdict in PLAYED]
    reading = source.read(answer(question), attempt(True), Style())
    assert reading.unreadable == 0 and len(reading.notes) == len(PLAYED)
    assert sorted(reading.texts) == [2, 3, 4, 7]  # those that are not good
    assert reading.notes[2].text == (
        "invalid: no mug 1 was seen at cabinet 1. Better: take candle 1 from cabinet 1"
    )


def test_a_task_that_needs_a_lamp() -> None:
    turns = [
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a statue 1.", "good"),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1.", "wrong"),
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a statue 1.", "good"),
        ("take statue 1 from shelf 1", "You pick up the statue 1 from the shelf 1.", "good"),
        ("go to shelf 2", "You arrive at shelf 2. On the shelf 2, you see nothing.", "wrong"),
        ("go to desk 1", "You arrive at desk 1. On the desk 1, you see a desklamp 1.", "good"),
        ("use desklamp 1", "You turn on the desklamp 1.", "good"),
    ]
    room = "you see a desk 1, and a shelf 1.\n\nYour task is to: examine the statue with the desklamp."
    shown = [
        f"Turn {n}\nAnswer: <action>{action}</action>\nEnvironment: {reply}\nReward: 0"
        for n, (action, reply, _) in enumerate(turns, start=1)
    ]
    found = diagnoses("\n".join([room, *shown]))
    assert [one["verdict"] for one in found] == [verdict for *_, verdict in turns]
    assert [one["fix"] for one in found if one["fix"]] == ["take statue 1 from shelf 1", "go to desk 1"]


def test_hint_sds_question_gets_corrections() -> None:
    source = Target(Target.Settings(targets=3))
    assert ask(source, True) is None
    question = ask(source, False)
    assert question is not None
    reading = source.read(answer(question), attempt(False), Style())
    assert list(reading.texts) == [4]  # the turn that leads away from the candle
    assert "Answer 'take candle 1 from cabinet 1' instead." in reading.texts[4]


def test_what_it_does_not_know_has_no_diagnosis() -> None:
    assert json.loads(answer("Who are you?")) == {"turns": []}
    assert json.loads(answer('Who are you? {"failures": []}')) == {"failures": []}


@pytest.mark.parametrize("path", ["/chat/completions"])
def test_it_answers_as_an_endpoint(path: str) -> None:
    with served() as url:
        asked = {
            "model": "rules",
            "messages": [{"role": "user", "content": ask(Reflect(Reflect.Settings()), True)}],
        }
        found = httpx.post(url + path, json=asked, timeout=10).json()
    assert len(json.loads(found["choices"][0]["message"]["content"])["turns"]) == len(PLAYED)
