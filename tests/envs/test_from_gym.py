"""Gymnasium environments taken as they are, in this process and through a real slot."""

from __future__ import annotations

import pickle
import sys
from contextlib import closing

import pytest
from slot_tools import run_async

from hindsight.cluster.failures import RunError
from hindsight.cluster.prepare import require_references
from hindsight.configs.check import check_config
from hindsight.configs.load import load_config
from hindsight.configs.schema import Env
from hindsight.envs.base import BadAnswer, EnvError, NoDemonstration, Observation, SettingError, StepResult
from hindsight.envs.boundary import Checked
from hindsight.envs.reference import play_references
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.slot import Forkserver, Slot

SOURCE = '''
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete, Text

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting


REWARDS = {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None}
ANSWERS = {
    "nothing": None,
    "four": ("", 0.0, True, {}),
    "bare": ("", 0.0, False, False, None),
    "bytes": (b"A wall.", 0.0, False, False, {}),
    "number": (7, 0.0, False, False, {}),
    "word": ("", 0.0, False, False, {"actions": "left"}),
    "ways": ("", 0.0, False, False, {"actions": [1, 2]}),
    "key": ("", 0.0, False, False, {"state_key": None}),
    "maybe": ("", 0.0, False, False, {"success": "no"}),
    "numpy": (np.str_("A wall."), np.float32(0.5), np.True_, np.False_, {"actions": np.array(["up"])}),
}


class Door(gymnasium.Env):
    """Find the way that the seed has chosen. A wrong one costs a tenth."""

    observation_space = action_space = Text(100)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.way = ("left", "right")[int(self.np_random.integers(2))]
        return "Two doors.", {"actions": ["left", "right"], "rules": "Find the way.", "state_key": "start"}

    def step(self, action):
        if action == "bug":
            raise KeyError(action)
        if action in REWARDS:
            return "", REWARDS[action], False, False, {}
        if action in ANSWERS:
            return ANSWERS[action]
        if action in ("give up", "praise"):
            return "Over.", 0.0, True, False, {"success": action == "praise"}
        won = action == self.way
        return ("Out." if won else "A wall."), (1.2 if won else -0.1), won, False, {}


class Open(Door):
    """A door that its registration opens to one side."""

    def __init__(self, side):
        self.side = side

    def step(self, action):
        return super().step(self.way if action == self.side else "")


if "tests/Door-v3" not in gymnasium.registry:  # each test imports this again
    gymnasium.register("tests/Door-v3", "doors:Open", kwargs={"side": "left"})


class Grid(Door):
    action_space = Discrete(4)


@dataclass(frozen=True)
class Locks(Env):
    locks: int = setting(1, "locks to open", low=1)


class LockedDoor(Door):
    Settings = Locks

    def __init__(self, settings):
        self.locks = settings.locks

'''


@pytest.fixture
def module(monkeypatch, tmp_path):
    (tmp_path / "doors.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    yield
    sys.modules.pop("doors", None)


def family_of(name="doors:Door", **settings):
    return make_family(Env(name=name, train_tasks=20, eval_tasks=5, max_turns=4, **settings))


def test_tasks_are_seeds_that_the_two_splits_do_not_share(module):
    family = family_of()
    manifest = family.manifest()
    assert (len(manifest.train), len(manifest.evaluation)) == (20, 5)
    seeds = {task.data["seed"] for task in (*manifest.train, *manifest.evaluation)}
    assert len(seeds) == 25
    assert pickle.loads(pickle.dumps(family)).manifest().digest == manifest.digest
    assert family_of(seed=1).manifest().digest != manifest.digest
    with pytest.raises(ValueError, match=r"env\.kinds"):
        family_of(kinds=["hard"])


def test_episodes_follow_the_environment(module):
    family = family_of()
    env = family.make()
    ways = set()
    for task in family.manifest().train:
        first = env.reset(task)
        assert (first.text, first.rules, first.state_key) == ("Two doors.", "Find the way.", "start")
        assert first.actions == ("left", "right")
        right = env._env.unwrapped.way
        wrong = {"left": "right", "right": "left"}[right]
        ways.add(right)
        result = env.step(wrong)
        assert (result.reward, result.terminated, result.success) == (0.0, False, False)  # clipped
        assert result.observation.state_key == result.feedback == "A wall."
        result = env.step(right)
        assert (result.reward, result.terminated, result.success) == (1.0, True, True)
        assert env.reset(task) == first and env._env.unwrapped.way == right
    assert ways == {"left", "right"}
    results = [env.step(wrong) for _ in range(4)]
    assert [result.truncated for result in results] == [False] * 3 + [True]


def test_an_id_that_the_module_has_registered(module):
    family = pickle.loads(pickle.dumps(family_of("doors:tests/Door-v3")))
    env, task = family.make(), family.manifest().train[0]
    assert env.reset(task).text == "Two doors." and env.step("left").observation.text == "Out."
    with pytest.raises(EnvError, match=r"env.name = 'doors:tests/Door-v4'.*tests/Door.*v3"):
        family_of("doors:tests/Door-v4")
    with pytest.raises(SettingError, match=r"observation_space is Box.*expected gymnasium.spaces.Text"):
        family_of("gymnasium:CartPole-v1").make()


def test_success_is_what_info_says(module):
    family = family_of()
    env, task = family.make(), family.manifest().train[0]
    for action, success in (("praise", True), ("give up", False)):
        env.reset(task)
        result = env.step(action)
        assert (result.terminated, result.success, result.reward) == (True, success, 0.0)
    env.reset(task)
    for action, reward in (("nan", "nan"), ("inf", "inf"), ("text", "'1.0'"), ("none", "None")):
        env.reset(task)
        with pytest.raises(BadAnswer, match=f"the reward of '{action}' = {reward} "):
            env.step(action)


def test_what_comes_is_checked_as_for_every_environment(module):
    family = family_of()
    env, task = Checked(family.make(), family.name), family.manifest().train[0]
    for action, said in {
        "nothing": r"the answer = None \(NoneType\); expected \(observation, reward, terminated, ",
        "four": "the answer = ",
        "bare": "info = None",
        "bytes": r"the result\.observation\.text = b'A wall\.'",
        "number": r"the result\.observation\.text = 7",
        "word": r"the result\.observation\.actions = 'left'",
        "ways": r"the result\.observation\.actions\[0\] = 1",
        "key": r"the result\.observation\.state_key = None",
        "maybe": r"the result\.success = 'no'",
    }.items():
        env.call("reset", task)
        with pytest.raises(BadAnswer, match=f"^environment doors:Door, task {task.id}: {said}"):
            env.call("step", action)
    env.call("reset", task)
    seen = Observation("A wall.", ("up",), "A wall.")
    assert env.call("step", "numpy") == StepResult(seen, "A wall.", 0.5, True, False, False)


def test_its_own_settings_reach_it(module):
    config = load_config(None, ["env.name=doors:LockedDoor", "env.locks=3"])
    assert make_family(config.env).make()._env.locks == 3
    assert "env.locks = 0: expected an integer >= 1" in check_config(
        load_config(None, ["env.name=doors:LockedDoor", "env.locks=0"])
    )


def test_other_spaces_are_refused_with_the_tasks(module):
    """So a run knows before it starts."""
    with pytest.raises(SettingError, match=r"env\.name='doors:Grid': action_space is Discrete\(4\)"):
        family_of("doors:Grid").manifest()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("sft.demos=8", r"sft\.demos = 8: set it to 0"),
        ("feedback.sources=[immediate,reference]", r"'reference'\]: leave out reference"),
        ("evaluate.agent=react", "react: choose another one"),
    ],
)
def test_what_needs_reference_solutions_is_refused(module, asked, said):
    family = family_of("doors:Door")
    with pytest.raises(RunError, match=rf"doors:Door has no reference solutions.*{said}"):
        require_references(load_config(None, [asked]), family)
    require_references(load_config(None, ["feedback.sources=[immediate]"]), family)
    require_references(load_config(None, [asked]), make_family(Env(name="webshop")))


def test_it_plays_in_a_slot(module):
    @run_async
    async def check():
        family = family_of()
        task = family.manifest().evaluation[0]
        with closing(Forkserver(family)) as server:
            slot = await Slot.start(server, 60)
            assert (await slot.call("reset", task, deadline=20)).text == "Two doors."
            results = [await slot.call("step", way, deadline=20) for way in ("up", "down")]
            assert not any(result.terminated for result in results)
            with pytest.raises(NoDemonstration):
                await slot.call("demonstrate", task, 0, 0.0, deadline=20)
            assert await slot.call("reference", task, deadline=20) is None
            await slot.call("reset", task, deadline=20)
            with pytest.raises(EnvError, match="KeyError: 'bug'"):
                await slot.call("step", "bug", deadline=20)

        played = await play_references(family, Env(), family.manifest().evaluation, lambda so_far: None)
        assert (played.tasks, played.unsolvable, played.problems) == (5, 5, [])

    check()
