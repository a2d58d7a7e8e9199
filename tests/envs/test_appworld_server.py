"""AppWorld's server: how the agent's code is shut in, and what a failing or orphaned server leads to."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from appworld_tools import ZygoteFamily, family_of, parent_of
from isolation import need
from slot_tools import run_async, running
from test_appworld import CONFIG, PROJECT, family, play, python  # noqa: F401 - fixtures

from hindsight.configs.paths import SOURCE, cache_root
from hindsight.envs.appworld.env import AppWorldEnv
from hindsight.envs.appworld.host import Zygote
from hindsight.envs.appworld.host import zygote as zygote_of
from hindsight.envs.base import EnvError, InstanceLost, SlotDied
from hindsight.envs.runtime import landlock
from hindsight.envs.runtime.interpreters import interpreter
from hindsight.envs.runtime.json_lines import Lines
from hindsight.envs.runtime.linux import descendants
from hindsight.envs.runtime.sandbox import MODES, NOBODY
from hindsight.envs.runtime.slot import Forkserver, Slot

FAST = replace(CONFIG, step_timeout=12)  # six seconds for a piece of code
OWNER = """
import pickle, sys
family = pickle.load(open(sys.argv[1], "rb"))
env = family.make()
env.reset(family.manifest().train[0])
env.step("__import__('threading').Thread(target=__import__('threading').Event().wait).start()")
print(env._server.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def task(family):  # noqa: F811
    return family.manifest().train[0]


@pytest.fixture(scope="module")
def zygote(family):  # noqa: F811
    return Zygote(interpreter("appworld", cache_root()), family.root)


@pytest.fixture(scope="module")
def env(zygote):
    """An environment in the strongest mode that works here."""
    env = AppWorldEnv(zygote, FAST)
    yield env
    env.close()


@pytest.fixture(params=MODES)
def shut(request, zygote, task):
    """An environment in each mode that works here, with an episode under way."""
    need(request.param)
    shut = AppWorldEnv(zygote, replace(FAST, sandbox=request.param))
    shut.reset(task)
    yield shut
    shut.close()


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets that the process holds."""
    ends = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {end[8:-1] for end in ends if end.startswith("socket:")}


def gone(pids: set[int], within: float = 20) -> bool:
    until = time.monotonic() + within
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(running, pids))


def test_what_the_agents_code_can_reach_and_that_it_can_win(shut, task):
    def tell(expression: str) -> str:
        return shut.step(f"print({expression})").feedback.strip()

    variables = set(json.loads(tell("sorted(__import__('os').environ)")))
    assert variables <= {
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "PYTHON_DOTENV_DISABLED",
        "APPWORLD_ROOT",
        "APPWORLD_CACHE",
    }
    truth = tell("[str(path) for path in __import__('pathlib').Path('data/tasks').rglob('ground_truth')]")
    assert truth == "[]"
    limits = json.loads(tell("[list(__import__('resource').getrlimit(limit)) for limit in (0, 4, 7, 9)]"))
    # CPU seconds, core files, descriptors, bytes of memory
    assert limits == [[6 * 40 + 60] * 2, [0, 0], [256, 256], [2 << 30] * 2]
    status = "__import__('ctypes').CDLL(None).prctl(39, 0, 0, 0, 0)"  # PR_GET_NO_NEW_PRIVS
    assert tell(status) == "1"
    assert not sockets(shut._server.pid) & sockets(max(family_of(shut._server.pid)))
    uid = int(tell("__import__('os').getuid()"))
    exists = "__import__('os').path.exists"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        shut.step(f"s = __import__('socket').create_connection({listener.getsockname()!r}, timeout=2)")
        try:
            listener.accept()
            connected = True
        except TimeoutError:
            connected = False
    ours = str(PROJECT / "pyproject.toml")  # folders on the way to the cache are there, empty of all else
    if shut._config.sandbox == "namespaces":
        seen = tell(f"[{exists}({ours!r}), {exists}('/etc/passwd'), {exists}('/proc/1')]")
        assert (uid, connected, seen) == (NOBODY, False, "[false, false, false]")
        assert int(tell("__import__('os').getpid()")) < 10
    else:
        assert (uid in (NOBODY, os.getuid()), connected) == (True, landlock.version() < 4)
        if landlock.version():
            assert "PermissionError" in tell(f"__import__('pathlib').Path({ours!r}).read_text()")
            assert "PermissionError" in tell("__import__('pathlib').Path('/proc/1/environ').read_text()")
    assert play(shut, task, shut.reference(task))[-1].success


FORGE = """
libc = __import__('ctypes').CDLL(None)
def forge(message):
    line = json.dumps(message).encode() + b'\\n'
    return [fd for fd in range(256) if fd > 2 and libc.write(fd, line, len(line)) == len(line)]
"""


FORGED = [
    {"value": {"output": "forged", "completed": True}},  # what the server hears when code has run
    {"value": {"passes": [], "failures": [], "num_tests": 1, "success": True}},  # from its judge
    "forged",  # what the apps hear when code has run
    [0, 200, [], "{}"],  # and what code hears from them
]


def test_an_answer_cannot_be_forged(shut, task):
    """Code that writes to every descriptor it has may lose its episode, but nobody believes it."""
    for message in FORGED:
        shut.reset(task)
        forged = shut.step(f"{FORGE.strip()}\nforge({message!r})")
        assert (forged.reward, forged.success) == (0.0, False)
        assert forged.terminated == ("lost" in forged.info)
        if not forged.terminated:
            verdict = shut.finish()
            assert not verdict.success and ("lost" in verdict.info or verdict.info["failures"])
    assert play(shut, task, shut.reference(task))[-1].success  # the slot is as good as before


def test_apis_that_are_not_for_agents_do_not_answer(shut, task):
    for path in ("/dbs", "/seed", "/dbs/save", "/admin/balance", "//dbs", "/phone/../dbs", "/%2564bs"):
        answer = shut.step(f"print(requester.post({path!r}, dict(seed=1)))").feedback
        assert "is not for agents" in answer or "not found" in answer.lower(), path


def test_what_code_leaves_behind_is_gone_with_its_action_or_its_episode(shut, task):
    libc = "libc = __import__('ctypes').CDLL(None)\n"
    before = descendants(shut._server.pid)
    fork = "pid = libc.fork()\nif pid == 0: __import__('threading').Event().wait()\nprint(pid > 0)"
    assert shut.step(libc + fork).feedback == "True\n"
    assert descendants(shut._server.pid) == before
    shut.step(libc + "libc.open(b'../x', 0o101, 0o644)")
    assert play(shut, task, shut.reference(task))[-1].success
    assert list(shut._server.folder.iterdir()) == []


def test_a_sandbox_that_cannot_be_had_is_refused_with_what_to_do(zygote, monkeypatch):
    ours, theirs = map(Lines, socket.socketpair())
    theirs.send({"value": {"pid": 1, "refused": "unshare: Operation not permitted"}})
    monkeypatch.setattr(zygote, "fork", lambda seconds: (ours, 2**22 + 1))  # no process has that number
    with pytest.raises(EnvError, match=r"env.sandbox = namespaces cannot.*unshare.*set env.sandbox=limits"):
        AppWorldEnv(zygote, replace(FAST, sandbox="namespaces"))
    theirs.close()


def test_limits_are_said_and_namespaces_need_no_word():
    assert replace(CONFIG, sandbox="namespaces").caveats == ()
    (caveat,) = replace(CONFIG, sandbox="limits").caveats
    assert "env.sandbox=limits" in caveat


def test_code_over_its_time_is_stopped_or_its_interpreter_is(env, task):
    env.reset(task)
    began = time.monotonic()
    assert "timed out after 6 seconds" in env.step("while True: pass").feedback
    assert not env.step("1").terminated
    spin = "def spin():\n    while True: pass\n"
    result = env.step(spin + "while True:\n    try: spin()\n    except BaseException: pass")
    assert (result.terminated, result.reward) == (True, 0.0)
    assert "did not answer within 9 s" in result.info["lost"]
    assert time.monotonic() - began < 60


def test_a_dead_hung_or_babbling_server_is_an_error_and_is_replaced(env, task):
    env.reset(task)
    pids = family_of(env._server.pid)
    assert len(pids) >= 2
    os.kill(env._server.pid, signal.SIGKILL)
    with pytest.raises(EnvError, match="server failed"):
        env.step("1")
    assert gone(pids)
    with pytest.raises(EnvError, match="reset"):
        env.step("1")

    env.reset(task)  # a new server
    pids = family_of(env._server.pid)
    os.kill(env._server.pid, signal.SIGSTOP)
    with pytest.raises(EnvError, match=r"did not answer within 10\.8 s"):
        env.step("1")
    assert gone(pids)

    env.reset(task)
    folder = env._server.folder
    ours, theirs = socket.socketpair()
    env._server.lines.socket, kept = ours, env._server.lines.socket
    with kept, theirs:
        theirs.sendall(b'{"neither": 1}\n')
        with pytest.raises(EnvError, match="no answer"):
            env.step("1")
    assert env._server is None
    assert not folder.exists()


def test_a_server_that_cannot_start_is_an_error(family):  # noqa: F811
    with pytest.raises(EnvError, match="server failed"):
        AppWorldEnv(Zygote(Path("/bin/false"), family.root), FAST)


def test_instances_share_a_zygote_which_is_replaced_once_dead_or_hung(family, task):  # noqa: F811
    where = interpreter("appworld", cache_root()), family.root
    first, second = family.make(), family.make()
    try:
        for each in (first, second):
            each.reset(task)
        second.step("x = 2")
        assert "not defined" in first.step("print(x)").feedback
        old = zygote_of(*where)
        assert {parent_of(each._server.pid) for each in (first, second)} == {old._process.pid}

        os.kill(old._process.pid, signal.SIGKILL)
        assert second.step("print(x)").feedback == "2\n"  # whoever has a server keeps it
        first.close()
        with pytest.raises(InstanceLost, match="no server could be forked"):
            first.reset(task)
        third = family.make()
        new = zygote_of(*where)
        assert parent_of(third._server.pid) == new._process.pid != old._process.pid
        third.close()

        os.kill(new._process.pid, signal.SIGSTOP)
        with pytest.raises(InstanceLost, match=r"did not answer within 1\.8 s"):
            AppWorldEnv(new, replace(FAST, reset_timeout=2))
        assert not new.alive
        assert zygote_of(*where).alive
    finally:
        second.close()


@run_async
async def test_slots_of_a_shard_share_a_zygote_and_get_another_when_it_has_died(family, task):  # noqa: F811
    async def parent(slot):
        return await slot.call("_zygote_pid", deadline=30)

    with closing(Forkserver(ZygoteFamily(CONFIG, cache_root()))) as server:
        slots = [await Slot.start(server, 120) for _ in range(3)]
        [old] = {await parent(slot) for slot in slots}
        os.kill(old, signal.SIGKILL)
        await slots[0].call("close", deadline=30)
        with pytest.raises(InstanceLost):
            await slots[0].call("reset", task, deadline=60)
        with pytest.raises(SlotDied):
            await slots[0].call("reset", task, deadline=60)
        others = [await Slot.start(server, 120) for _ in range(2)]
        [new] = {await parent(slot) for slot in others}
        assert new != old
        assert (await others[0].call("reset", task, deadline=60)).text
    assert gone({new})


def test_server_and_world_die_with_a_killed_owner_and_listen_nowhere(family, tmp_path):  # noqa: F811
    (tmp_path / "family").write_bytes(pickle.dumps(family))
    (tmp_path / "tmp").mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "family")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    try:
        server = int(owner.stdout.readline())
        pids = family_of(server)
        assert len(pids) >= 2
        listening = {
            line.split()[index]
            for name, index, state, listens in (
                ("tcp", 9, 3, "0A"),
                ("tcp6", 9, 3, "0A"),
                ("unix", 6, 3, "00010000"),
            )
            for line in Path(f"/proc/{server}/net/{name}").read_text().splitlines()[1:]
            if line.split()[state] == listens
        }
        assert not listening & set().union(*map(sockets, pids))
        folders = set(Path(tempfile.gettempdir()).glob("hindsight-appworld-*"))
        assert folders
    finally:
        owner.kill()  # SIGKILL
        owner.wait()
    assert gone(pids)
    assert set(Path(tempfile.gettempdir()).glob("hindsight-appworld-*")) < folders
