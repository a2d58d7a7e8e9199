"""What `TextEnv` does for every environment: the order of calls, the count of turns, the cut at the limit."""

from __future__ import annotations

import pytest

from hindsight.envs.base import EnvError, Observation, StepResult, TextEnv, Verdict
from hindsight.envs.tasks import TaskSpec

TASK = TaskSpec("t", "toy", "open", "train")


class Counting(TextEnv):
    """Each action names how its step ends; a cut earns a tenth for each turn."""

    def _reset(self, task: TaskSpec) -> Observation:
        if task.data.get("broken"):
            raise EnvError("no such game")
        return Observation("0")

    def _step(self, action: str) -> StepResult:
        if action == "fail":
            raise EnvError("the backend failed")
        won, lost = action == "win", action == "lose"
        text = str(self.turns)
        return StepResult(Observation(text), text, float(won), won, lost, won, {"turn": self.turns})

    def _finish(self) -> Verdict:
        return Verdict(self.turns / 10, False, {"cut": True})


def ended(env: TextEnv) -> bool:
    """Whether neither a step nor a verdict can be had."""
    with pytest.raises(EnvError, match=r"^no episode is under way: reset first$"):
        env.step("go")
    with pytest.raises(EnvError, match=r"^no episode is under way: reset first$"):
        env.finish()
    return not env.playing


def test_nothing_comes_before_a_reset():
    assert ended(Counting(3))


@pytest.mark.parametrize("last", ["win", "lose"])
def test_an_episode_ends_with_the_environments_word(last):
    env = Counting(3)
    env.reset(TASK)
    assert env.step("go").feedback == "1" and env.playing
    result = env.step(last)
    assert (result.terminated, result.truncated, result.info) == (last == "win", last == "lose", {"turn": 2})
    assert ended(env)
    assert env.reset(TASK).text == "0" and env.turns == 0 and env.playing


def test_the_last_turn_is_cut_with_the_verdict_unless_it_ended_the_episode():
    env = Counting(2)
    env.reset(TASK)
    env.step("go")
    result = env.step("go")
    assert (result.terminated, result.truncated, result.reward) == (False, True, 0.2)
    assert result.info == {"turn": 2, "cut": True} and ended(env)
    env.reset(TASK)
    env.step("go")
    result = env.step("win")
    assert (result.terminated, result.truncated, result.reward) == (True, False, 1.0)


def test_a_verdict_ends_the_episode():
    env = Counting(3)
    env.reset(TASK)
    env.step("go")
    assert env.finish() == Verdict(0.1, False, {"cut": True}) and ended(env)


def test_a_failure_ends_the_episode():
    env = Counting(3)
    env.reset(TASK)
    with pytest.raises(EnvError, match="backend"):
        env.step("fail")
    assert ended(env)
    env.reset(TASK)
    with pytest.raises(EnvError, match="no such game"):
        env.reset(TaskSpec("t", "toy", "open", "train", {"broken": True}))
    assert ended(env)
