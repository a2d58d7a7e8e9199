"""The example environment keeps the contract, in this process and in a slot."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest
from slot_tools import run_async

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvError
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.slot import Forkserver, Slot

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "env.py"


@pytest.fixture
def family(monkeypatch, tmp_path):
    shutil.copy(EXAMPLE, tmp_path / "guess.py")
    monkeypatch.syspath_prepend(tmp_path)
    # Set before it is deleted, so that the module is gone after the test whoever imports it meanwhile.
    monkeypatch.setitem(sys.modules, "guess", sys)
    monkeypatch.delitem(sys.modules, "guess")
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    return make_family(Env(name="guess:ExampleFamily", max_turns=7))


def test_the_example_plays_by_the_contract(family):
    manifest = family.manifest()
    assert (len(manifest.train), len(manifest.evaluation)) == (50, 50)
    assert not {task.id for task in manifest.train} & {task.id for task in manifest.evaluation}
    assert manifest.digest == family.manifest().digest
    env, task = family.make(), manifest.train[20]
    assert all(env.demonstrate(task, 0, 0.0).success for task in manifest.train)
    first = env.reset(task)  # the secret is 41
    answers = ["", "ten", "40", "42", "9" * 5000, "41"]
    results = [env.step(answer) for answer in answers]
    texts = [result.feedback for result in results]
    assert texts[2:4] == ["Higher.", "Lower."] and texts[5] == "Right."
    assert [result.reward for result in results] == [0.0] * 5 + [1.0]
    with pytest.raises(EnvError, match="reset"):
        env.step("41")
    assert env.reset(task) == first
    results = [env.step("1") for _ in range(7)]
    assert [result.truncated for result in results] == [False] * 6 + [True]


@run_async
async def play(family):
    task = family.manifest().evaluation[0]
    with closing(Forkserver(family)) as server:
        slot = await Slot.start(server, 30)
        await slot.call("reset", task, deadline=10)
        assert (await slot.call("step", "2", deadline=10)).success


def test_the_example_runs_in_a_slot(family):
    play(family)
