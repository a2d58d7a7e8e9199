"""The environments behind Gymnasium's interface, by Gymnasium's own checker and step by step."""

from __future__ import annotations

import asyncio
import os
import signal
import warnings
from contextlib import closing

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import hindsight.envs.gym as gym_env
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.envs.base import EnvError, SlotDied

SMALL = {"train_tasks": 4, "eval_tasks": 2}


@pytest.fixture(scope="module", params=["ALFWorld", "BFCL"])
def env(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ALFWORLD_DATA", raising=False)
        patch.setenv("HINDSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "gym"))
        env = gymnasium.make(f"hindsight/{request.param}-v0", **SMALL)
        yield env
        env.close()
        env.close()


def test_all_are_registered():
    assert set(gym_env.TITLES) == set(ENVIRONMENTS.builtin)
    for title in gym_env.TITLES.values():
        assert gymnasium.spec(f"hindsight/{title}-v0").entry_point == "hindsight.envs.gym:GymEnv"


def test_gymnasiums_checker_finds_nothing(env):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_a_reference_wins_through_the_interface(env):
    inner = env.unwrapped
    for task in inner._tasks.values():
        text, info = env.reset(options={"task": task.id})
        assert text == info["text"] and text in env.observation_space
        solution = inner._run(inner._slot.call("reference", task, deadline=60))
        for action in solution:
            text, reward, terminated, truncated, info = env.step(action)
            assert text in env.observation_space and text == info["text"] and action in env.action_space
        assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
        assert info["feedback"] and info.keys() >= {
            "actions",
            "state_key",
            "role",
            "rules",
            "tools",
            "details",
        }
    with pytest.raises(EnvError, match="reset"):
        env.step("again")


def test_seeds_draw_training_tasks_and_unknown_tasks_are_told(env):
    assert env.reset(seed=3)[0] == env.reset(seed=3)[0]
    assert len({env.reset(seed=seed)[0] for seed in range(20)}) > 1
    with pytest.raises(ValueError, match=r"options\['task'\]='lost' is not a task; for example: "):
        env.reset(options={"task": "lost"})


def test_the_turn_limit_is_the_literatures(env):
    limit = {"alfworld": 50, "bfcl": 20}[env.unwrapped.spec.kwargs["name"]]
    env.reset(seed=0)
    ends = [env.step("look" if limit == 50 else "<tool_call>")[3] for _ in range(limit)]
    assert ends == [False] * (limit - 1) + [True]


def test_a_killed_instance_is_an_error_and_the_next_reset_has_a_fresh_one(env):
    text, _ = env.reset(seed=0)
    os.kill(env.unwrapped._slot.pid, signal.SIGKILL)
    with pytest.raises(SlotDied):
        env.step("look")
    assert env.reset(seed=0)[0] == text


def test_two_instances_play_side_by_side_and_inside_a_loop(env):
    async def inside():
        with closing(gymnasium.make(env.unwrapped.spec)) as other:
            return other.reset(seed=1)[0], env.reset(seed=1)[0]

    one, other = asyncio.run(inside())
    assert one == other


def test_any_text_fits_the_observation_space():
    odd = "plain é 漢 \ud800 \U0001f600" + "x" * (1 << 21)
    space = gymnasium.spaces.Text(gym_env.LONGEST_OBSERVATION, min_length=0, charset=gym_env.CHARACTERS)
    assert gym_env._fit(odd) in space
    assert gym_env._fit(odd).startswith("plain é 漢 \N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}xxx")
