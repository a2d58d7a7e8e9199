"""One slot: answers, deadlines, deaths and what must not outlive it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from slot_tools import gone, run_async, running
from toy_env import AskingFamily, PreloadingFamily, ToyFamily, UnloadableFamily, UnpicklableEnv, task

from hindsight.envs.base import DataMissing, EnvError, InstanceLost, SlotDied, SlotTimeout
from hindsight.envs.runtime.slot import Forkserver, Slot


@contextmanager
def server(family: ToyFamily | None = None) -> Iterator[Forkserver]:
    server = Forkserver(family or ToyFamily())
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def started(family: ToyFamily | None = None) -> AsyncIterator[Slot]:
    with server(family) as forkserver:
        yield await Slot.start(forkserver, 20)


async def feedback(slot: Slot, action: str, deadline: float = 20) -> str:
    return (await slot.call("step", action, deadline=deadline)).feedback


@run_async
async def test_an_episode_lives_in_another_process():
    async with started() as slot:
        assert (await slot.call("reset", task("count"), deadline=20)).text == "count 0"
        result = await slot.call("step", "add", deadline=20)
        assert (result.observation.text, result.feedback, result.reward) == ("count 1", "added", 0.0)
        assert int(await feedback(slot, "pid")) == slot.pid != os.getpid()
        assert await slot.call("reference", task(), deadline=20) == ["add"] * 100
        assert slot.alive and slot.rss > 1 << 20


@run_async
async def test_a_slot_has_the_secrets_that_its_family_names_and_no_others(monkeypatch):
    monkeypatch.setenv("TOY_API_KEY", "sk-toy")
    monkeypatch.setenv("OTHER_API_KEY", "sk-other")
    monkeypatch.setenv("TOY_DATA", "/data")
    for family, key in ((ToyFamily(), "absent"), (AskingFamily(), "sk-toy")):
        async with started(family) as slot:
            await slot.call("reset", task(), deadline=20)
            names = ("TOY_API_KEY", "OTHER_API_KEY", "TOY_DATA")
            assert [await feedback(slot, f"variable {name}") for name in names] == [key, "absent", "/data"]


@run_async
async def test_what_a_family_loads_ahead_is_loaded_once_and_its_failure_is_told():
    with server(PreloadingFamily()) as forkserver:
        slots = [await Slot.start(forkserver, 20) for _ in range(2)]
        for slot in slots:
            await slot.call("reset", task(), deadline=20)
            assert await feedback(slot, "origin") == str(-forkserver.pid)
    with pytest.raises(DataMissing, match="no such folder"):
        async with started(PreloadingFamily(fail="no such folder")):
            pass


@run_async
async def test_slots_share_the_imported_module_and_nothing_else():
    with server() as forkserver:
        one, two = [await Slot.start(forkserver, 20) for _ in range(2)]
        await one.call("reset", task("one"), deadline=20)
        await two.call("reset", task("two"), deadline=20)
        assert await feedback(one, "origin") == await feedback(two, "origin") == str(forkserver.pid)
        await feedback(one, "add")
        assert (await one.call("step", "add", deadline=20)).observation.text == "one 3"
        assert (await two.call("step", "add", deadline=20)).observation.text == "two 2"


@pytest.mark.parametrize("hang", ["sleep 600", "spin"])
@run_async
async def test_a_hang_is_killed_on_its_deadline(hang):
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        with pytest.raises(SlotTimeout, match=r"step took over 0\.3 s"):
            await feedback(slot, hang, deadline=0.3)
        assert not slot.alive and slot.killed
        assert await gone(slot.pid)
        with pytest.raises(SlotDied):
            await feedback(slot, "add")


@run_async
async def test_a_slow_make_and_a_slow_reset_are_killed():
    with server(ToyFamily(slow=600)) as forkserver, pytest.raises(SlotTimeout, match="make"):
        await Slot.start(forkserver, 1.0)
    async with started() as slot:
        with pytest.raises(SlotTimeout, match="reset"):
            await slot.call("reset", task(slow=600), deadline=0.3)
        assert await gone(slot.pid)


@run_async
async def test_a_death_in_a_call_and_between_calls():
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        call = asyncio.create_task(feedback(slot, "sleep 600"))
        await asyncio.sleep(0.1)
        os.kill(slot.pid, signal.SIGKILL)
        with pytest.raises(SlotDied, match="before it answered step"):
            await call
        assert not slot.killed
    async with started() as slot:
        os.kill(slot.pid, signal.SIGKILL)
        assert await gone(slot.pid)
        await asyncio.sleep(0.1)
        assert not slot.alive
        with pytest.raises(SlotDied):
            await slot.call("reset", task(), deadline=20)
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        with pytest.raises(SlotDied):
            await feedback(slot, "exit 0")


@run_async
async def test_an_exception_comes_back_and_the_slot_lives_on():
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        with pytest.raises(EnvError, match=r"^reset: no such game$") as error:
            await slot.call("reset", task(broken=True), deadline=20)
        assert type(error.value) is EnvError
        with pytest.raises(EnvError, match=r"^step: no episode is under way"):
            await feedback(slot, "add")
        await slot.call("reset", task(), deadline=20)
        assert await feedback(slot, "add") == "added"


@pytest.mark.parametrize("call", [("step", "raise wrong move"), ("dance",)])
@run_async
async def test_what_nobody_foresaw_is_said_and_ends_the_slot(call, capfd):
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        said = r"^step: ValueError: wrong move$|^dance: AttributeError: .*dance"
        with pytest.raises(InstanceLost, match=said):
            await slot.call(*call, deadline=20)
        assert not slot.alive and not slot.killed
        assert await gone(slot.pid)
        with pytest.raises(SlotDied):
            await feedback(slot, "add")
    assert "Traceback" in capfd.readouterr().err


@run_async
async def test_what_cannot_be_pickled_is_an_error():
    async with started(ToyFamily(env=UnpicklableEnv)) as slot:
        await slot.call("reset", task(), deadline=20)
        with pytest.raises(InstanceLost, match=r"^step: .*(pickle|local object)"):
            await feedback(slot, "add")


@run_async
async def test_prints_break_nothing(capfd):
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        assert await feedback(slot, "print noise") == ""  # stdin is empty, too
        assert await feedback(slot, "add") == "added"
        assert len(await feedback(slot, "big 1000000")) == 1_000_000
    out, err = capfd.readouterr()
    assert "garbage" not in out and "noise" not in out
    assert "garbage" in err and "noise" in err


@run_async
async def test_missing_data_keep_their_type():
    async with started() as slot:
        with pytest.raises(DataMissing, match="download"):
            await slot.call("reset", task(missing="download it"), deadline=20)


@run_async
async def test_a_failing_make_says_why():
    with (
        server(ToyFamily(fail="get the games")) as forkserver,
        pytest.raises(EnvError, match=r"^make: get the games$"),
    ):
        await Slot.start(forkserver, 20)
    with (
        server(UnloadableFamily()) as forkserver,
        pytest.raises(EnvError, match="ImportError: a library"),
    ):
        await Slot.start(forkserver, 20)


@run_async
async def test_a_kill_takes_along_what_the_environment_started():
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        child = int(await feedback(slot, "child"))
        assert running(child)
        slot.kill()
        assert await gone(slot.pid) and await gone(child)


@run_async
async def test_a_cancelled_call_cannot_answer_the_next_one():
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        call = asyncio.create_task(feedback(slot, "sleep 0.2"))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(SlotDied):
            await feedback(slot, "add")


@run_async
async def test_two_calls_at_once_are_refused():
    async with started() as slot:
        await slot.call("reset", task(), deadline=20)
        call = asyncio.create_task(feedback(slot, "sleep 0.2"))
        await asyncio.sleep(0.05)
        with pytest.raises(RuntimeError, match="another call"):
            await feedback(slot, "add")
        assert await call == "slept"


@run_async
async def test_a_lost_server_is_started_again():
    with server() as forkserver:
        slot = await Slot.start(forkserver, 20)
        os.kill(forkserver.pid, signal.SIGKILL)
        assert await gone(slot.pid)  # no slot outlives its server
        fresh = await Slot.start(forkserver, 20)
        await fresh.call("reset", task(), deadline=20)
        assert await feedback(fresh, "add") == "added"


OWNER = """
import asyncio, sys
sys.path[:] = {path!r}
from hindsight.envs.runtime.slot import Forkserver, Slot
from slot_tools import gone, run_async, running
from toy_env import AskingFamily, PreloadingFamily, ToyFamily, task

async def main():
    server = Forkserver(ToyFamily())
    idle, hung = [await Slot.start(server, 20) for _ in range(2)]
    await hung.call("reset", task(), deadline=20)
    print(server.pid, idle.pid, hung.pid, flush=True)
    await hung.call("step", "spin", deadline=600)

asyncio.run(main())
"""


@run_async
async def test_nothing_outlives_a_killed_owner():
    code = OWNER.format(path=sys.path)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 3 and all(map(running, pids))
        owner.kill()
    assert [await gone(pid) for pid in pids] == [True] * 3
