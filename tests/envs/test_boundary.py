"""What an environment may answer: checked for every family where its process answers."""

from __future__ import annotations

import asyncio
import atexit
import os
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
from slot_tools import gone, run_async
from toy_env import ToyEnv, ToyFamily, task

from hindsight.envs.base import (
    BadAnswer,
    Demonstration,
    DemoStep,
    EnvError,
    InstanceLost,
    Observation,
    SlotDied,
    StepResult,
    Verdict,
)
from hindsight.envs.boundary import LONGEST, Checked, described
from hindsight.envs.runtime.slot import Forkserver, Slot
from hindsight.envs.webshop.pages import Page
from hindsight.rollout.worker import failure_kind

ROOM = Observation("A room.", ("look",), "room")
SEEN = StepResult(ROOM, "Nothing.", 0.0, False, False, False, {"turn": 1})
STEP = DemoStep(ROOM, "look", "look", SEEN)
SHOWN = Demonstration(task(), ROOM, (STEP,), False)
HALF = "a \ud83d b"
LOOP: dict = {}
LOOP["self"] = LOOP
DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]


class Word(str, Enum):  # noqa: UP042 - as people write it
    LOOK = "look"


class Loud(str):
    def __str__(self) -> str:
        return "loud"


class Answering(ToyEnv):
    """Every method answers the same."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer
        self.reset = self.step = self.finish = self.demonstrate = self.reference = self._say  # type: ignore

    def _say(self, *args: object) -> object:
        return self.answer


def answered(method: str, answer: object) -> object:
    args = {"reset": [task()], "step": ["look"], "finish": []}.get(method, [task()])
    return Checked(Answering(answer), "toy").call(method, *args)


BAD = [
    ("reset", None, "the observation = None (NoneType); expected an Observation"),
    ("reset", (ROOM, {}), "expected an Observation"),
    ("reset", replace(ROOM, text=b"A room."), "the observation.text = b'A room.' (bytes); expected text"),
    ("reset", replace(ROOM, text=7), "the observation.text = 7 (int); expected text"),
    ("reset", replace(ROOM, text=HALF), "expected text without lone surrogates, as at 2"),
    ("reset", replace(ROOM, text="x" * (LONGEST + 1)), f"at most {LONGEST} characters, not {LONGEST + 1}"),
    ("reset", replace(ROOM, rules=None), "the observation.rules = None"),
    ("reset", replace(ROOM, goal=3), "the observation.goal = 3"),
    ("reset", replace(ROOM, state_key=(1, 2)), "the observation.state_key = (1, 2) (tuple)"),
    ("reset", replace(ROOM, role="system"), "the observation.role = 'system' (str); expected user or tool"),
    ("reset", replace(ROOM, actions="look"), "the observation.actions = 'look' (str); expected a list"),
    ("reset", replace(ROOM, actions=("look", 3)), "the observation.actions[1] = 3 (int); expected text"),
    ("reset", replace(ROOM, actions=(HALF,)), "the observation.actions"),
    ("reset", replace(ROOM, actions=("x" * LONGEST, "y")), f"at most {LONGEST} characters"),
    ("reset", replace(ROOM, actions=("",) * (LONGEST + 1)), f"at most {LONGEST} texts"),
    ("reset", replace(ROOM, tools=({"name": "cd", "run": print},)), "observation.tools"),
    ("reset", replace(ROOM, tools=({"description": "no name"},)), "expected schemas with a name each"),
    ("reset", replace(ROOM, tools="cd"), "expected a list"),
    ("step", None, "the result = None (NoneType); expected a StepResult"),
    ("step", replace(SEEN, observation="A room."), "the result.observation = 'A room.' (str)"),
    ("step", replace(SEEN, observation=replace(ROOM, text=HALF)), "the result.observation.text"),
    ("step", replace(SEEN, feedback=None), "the result.feedback = None"),
    ("step", replace(SEEN, reward=float("nan")), "the result.reward = nan (float); expected a finite number"),
    ("step", replace(SEEN, reward=-float("inf")), "expected a finite number"),
    ("step", replace(SEEN, reward=10**400), "expected a finite number"),
    ("step", replace(SEEN, reward=None), "the result.reward = None (NoneType); expected a number"),
    ("step", replace(SEEN, reward="1.0"), "the result.reward = '1.0' (str); expected a number"),
    ("step", replace(SEEN, reward=1j), "expected a number"),
    ("step", replace(SEEN, reward=np.array([0.0, 1.0])), "expected a number"),
    (
        "step",
        replace(SEEN, terminated=None),
        "the result.terminated = None (NoneType); expected True or False",
    ),
    ("step", replace(SEEN, truncated="no"), "the result.truncated = 'no'"),
    ("step", replace(SEEN, success=2), "the result.success = 2"),
    ("step", replace(SEEN, info=None), "the result.info = None (NoneType); expected an object"),
    ("step", replace(SEEN, info={"env": object}), "expected JSON data"),
    ("step", replace(SEEN, info={"said": HALF}), "expected JSON data"),
    ("step", replace(SEEN, info=LOOP), "expected JSON data"),
    ("step", replace(SEEN, info={"deep": DEEP}), "32 deep at most"),
    ("step", replace(SEEN, info={"long": "x" * LONGEST}), "characters of JSON"),
    ("finish", 1.0, "the verdict = 1.0 (float); expected a Verdict or None"),
    ("finish", Verdict(float("inf"), True), "the verdict.reward = inf"),
    ("finish", Verdict(1.0, None), "the verdict.success = None"),
    ("demonstrate", None, "the demonstration = None"),
    ("demonstrate", replace(SHOWN, steps=()), "at least one DemoStep"),
    ("demonstrate", replace(SHOWN, steps=(STEP, SEEN)), "step 1 = StepResult("),
    ("demonstrate", replace(SHOWN, first=None), "the demonstration.first = None"),
    ("demonstrate", replace(SHOWN, task="t"), "the demonstration.task = 't'"),
    ("demonstrate", replace(SHOWN, steps=(replace(STEP, action=None),)), "step 0.action = None"),
    ("demonstrate", replace(SHOWN, steps=(replace(STEP, expert=b"look"),)), "step 0.expert = b'look'"),
    (
        "demonstrate",
        replace(SHOWN, steps=(replace(STEP, result=replace(SEEN, reward="1")),)),
        "step 0.result.reward = '1'",
    ),
    ("reference", "look", "the reference solution = 'look' (str)"),
    ("reference", ["look", None], "the reference solution[1] = None"),
    ("reference", [HALF], "lone surrogates"),
]


@pytest.mark.parametrize(("method", "answer", "said"), BAD, ids=[f"{m}-{s[:60]}" for m, _, s in BAD])
def test_a_wrong_answer_names_the_environment_the_task_and_the_field(method, answer, said):
    env = Checked(Answering(answer), "toy")
    env._task = "count"
    with pytest.raises(BadAnswer) as error:
        env.call(method, *([] if method == "finish" else ["look"] if method == "step" else [task()]))
    message = str(error.value)
    assert message.startswith("environment toy, task count: ") and said in message
    assert len(message) < 500 and message.encode()
    assert failure_kind(error.value) == "env_error"


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
        (Fraction(1, 2), 0.5),
    ],
)
def test_numbers_become_floats(reward, expected):
    found = answered("step", replace(SEEN, reward=reward))
    assert found.reward == expected and type(found.reward) is float


@pytest.mark.parametrize("yes", [True, np.True_, 1, 1.0, np.float32(1)])
def test_flags_become_bools(yes):
    found = answered("step", replace(SEEN, terminated=yes, success=yes))
    assert found.terminated is found.success is True and found.truncated is False


def test_what_is_right_stays_as_it_is():
    bare = replace(SEEN, info={})
    assert answered("reset", ROOM) is ROOM and answered("step", bare) is bare
    assert answered("step", SEEN) == SEEN and answered("finish", None) is None
    assert answered("finish", Verdict(1.0, True, {"a": 1})) == Verdict(1.0, True, {"a": 1})
    assert answered("demonstrate", SHOWN) == SHOWN
    assert answered("reference", ("look",)) == ["look"] and answered("reference", None) is None
    page = Page("Shop", ("click[a]",), "shop")
    assert answered("reset", page) is page  # its class knows which actions it admits
    wide = Observation("é😀" * 1000, state_key="\x00")
    assert answered("reset", wide) is wide


def test_strings_and_data_become_plain():
    odd = Observation(np.str_("a"), [Word.LOOK, np.str_("b"), Loud("c")], Loud("d"))
    found = answered("reset", odd)
    assert found == Observation("a", ("look", "b", "c"), "d")
    assert {type(one) for one in (found.text, *found.actions, found.state_key)} == {str}
    info = {"n": np.int64(3), "x": np.float32(0.5), "t": (1, {"s": np.str_("s")}), "m": MappingProxyType({})}
    found = answered("step", replace(SEEN, info=MappingProxyType(info))).info
    assert found == {"n": 3, "x": 0.5, "t": [1, {"s": "s"}], "m": {}}
    assert type(found) is dict and type(found["t"][1]["s"]) is str
    tools = [MappingProxyType({"name": "cd", "parameters": {"n": np.int64(1)}})]
    assert answered("reset", replace(ROOM, tools=tools)).tools == ({"name": "cd", "parameters": {"n": 1}},)


class Mute(EnvError):
    def __str__(self) -> str:
        raise ValueError("no words")


def test_any_exception_can_be_described():
    assert described(Mute()) == "<exception str() failed>"
    assert described(ValueError(HALF)) == "a \\ud83d b"
    assert len(described(ValueError("x" * 10**6))) == 10_000
    assert described(KeyError("bug")) == "'bug'"


class Misbehaving(ToyEnv):
    """An action is what goes wrong."""

    def _reset(self, task):
        if task.data.get("none"):
            return None
        if task.data.get("leave"):
            raise KeyboardInterrupt
        return super()._reset(task)

    def _step(self, action):
        match action:
            case "none":
                return None
            case "mute":
                raise Mute
            case "mute bug":
                raise type("MuteBug", (ValueError,), {"__str__": lambda self: 1 / 0})
            case "halves":
                raise EnvError(HALF)
            case "leave":
                raise SystemExit(3)
            case "cancel":
                raise asyncio.CancelledError
            case "nan":
                return replace(super()._step("add"), reward=float("nan"))
        return super()._step(action)


@dataclass
class HollowFamily(ToyFamily):
    def make(self):
        return None


class TidyFamily(ToyFamily):
    def preload(self):
        server = os.getpid()
        atexit.register(lambda: os.getpid() != server and os.write(2, b"torn down by a slot"))


@run_async
async def test_a_slot_tells_a_wrong_answer_and_lives_on(capfd):
    with closing(Forkserver(ToyFamily(env=Misbehaving))) as server:
        slot = await Slot.start(server, 20)
        with pytest.raises(BadAnswer, match=r"^reset: environment toy, task lost: the observation = None"):
            await slot.call("reset", task("lost", none=True), deadline=20)
        for action, said in (("none", "the result = None"), ("nan", r"the result\.reward = nan")):
            await slot.call("reset", task("count"), deadline=20)
            with pytest.raises(BadAnswer, match=f"^step: environment toy, task count: {said}"):
                await slot.call("step", action, deadline=20)
        for action, said in (("mute", r"<exception str\(\) failed>"), ("halves", r"a \\ud83d b")):
            await slot.call("reset", task("count"), deadline=20)
            with pytest.raises(EnvError, match=f"^step: {said}"):
                await slot.call("step", action, deadline=20)
        assert (await slot.call("reset", task("count"), deadline=20)).text == "count 0" and slot.alive
        with pytest.raises(InstanceLost, match=r"^step: MuteBug: <exception str\(\) failed>"):
            await slot.call("step", "mute bug", deadline=20)


@run_async
async def test_an_environment_that_ends_its_process_is_a_death_and_takes_nothing_along(capfd):
    with closing(Forkserver(TidyFamily(env=Misbehaving))) as server:
        for method, given in (
            ("reset", task(leave=True)),
            ("step", "leave"),
            ("step", "cancel"),
        ):
            slot = await Slot.start(server, 20)
            await slot.call("reset", task(), deadline=20)
            with pytest.raises(SlotDied, match=f"before it answered {method}"):
                await slot.call(method, given, deadline=20)
            assert await gone(slot.pid)
        assert (await Slot.start(server, 20)).alive
    err = capfd.readouterr().err
    assert "SystemExit: 3" in err and "torn down" not in err


@run_async
async def test_an_instance_that_is_none_is_refused():
    with (
        closing(Forkserver(HollowFamily())) as server,
        pytest.raises(BadAnswer, match=r"^make: environment toy: the instance = None"),
    ):
        await Slot.start(server, 20)
