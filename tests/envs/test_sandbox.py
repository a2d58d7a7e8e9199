"""What an isolated child can reach, what it may hold, and what is left of it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from isolation import need
from slot_tools import running

from hindsight.envs.runtime import landlock, sandbox
from hindsight.envs.runtime.json_lines import Lines, Lost
from hindsight.envs.runtime.linux import adopt_orphans, descendants
from hindsight.envs.runtime.sandbox import HOME, MODES, Permissions, missing_for_namespaces, refusal, spawn

MIB = 1 << 20
PATIENCE = 180.0  # seconds: touching so much memory took over 30 on a busy machine


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    need(request.param)
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        yield Path(folder)


@pytest.fixture
def shown() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "data").write_text("data")
        yield Path(folder)


def told(child: sandbox.Child) -> object:
    try:
        return child.lines.receive(PATIENCE)
    finally:
        child.kill()


def denied(attempt: str) -> str:
    """The error's name that Python code raises; "" if it raises none."""
    try:
        exec(attempt)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_files_outside_cannot_be_read_or_written(mode, folder, shown, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    if mode == "limits" and not landlock.version():
        pytest.skip("the kernel has no Landlock, without which limits hide no files")

    def look(lines: Lines) -> None:
        answers = [Path("shown/data").read_text(), *map(denied, attempts)]
        lines.send(answers)

    attempts = [
        f"open({str(secret)!r}).read()",
        "open('/proc/1/environ').read()",
        f"open({str(shown / 'mine')!r}, 'w')",
        "open('shown/mine', 'w')",
        f"open({os.__file__!r}, 'a')",
        "open('mine', 'w')",
    ]
    answers = told(spawn(mode, Permissions(folder, {"shown": shown}), look))
    assert answers[0] == "data"
    assert all(answers[1:-1]) and answers[-1] == ""
    assert os.listdir(shown) == ["data"]


def test_the_network_cannot_be_reached(mode, folder):
    if mode == "limits" and landlock.version() < 4:
        pytest.skip("the kernel's Landlock knows no network (version 4), without which limits leave it open")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attempt = f"__import__('socket').create_connection({listener.getsockname()!r}, timeout=5)"
        assert told(spawn(mode, Permissions(folder, {}), lambda lines: lines.send(denied(attempt))))


# Four processes hold 200 MiB each. They run in an interpreter of their own: address space is limited too, and
# the tests' process has gigabytes of it once it has imported torch. So it can allocate no more, but fork.
HOLD = f"""
import os, time
os.fork(), os.fork()
held = b"x" * {200 * MIB}
time.sleep({PATIENCE})
"""


def test_memory_is_bounded_for_all_processes_together(mode, folder):
    command = [sys.executable, "-c", HOLD]

    def hold(lines: Lines) -> None:
        if (started := os.fork()) == 0:
            os.execv(command[0], command)
        os.waitpid(started, 0)

    child = spawn(mode, Permissions(folder, {}, memory=600 * MIB), hold)
    try:
        with pytest.raises(Lost, match="held more than 600 MiB together"):
            child.lines.receive(PATIENCE, meanwhile=child.bound)
    finally:
        child.kill()


def test_what_an_action_started_ends_with_it_and_the_rest_stands_still(mode, folder):
    def act(lines: Lines) -> None:
        while lines.receive() == "spawn":
            # A shell that ends at once: its child has nobody but the sandbox.
            subprocess.run(["sh", "-c", "sleep 60 & sleep 60 &"], stdout=subprocess.DEVNULL)
            lines.send("spawned")

    child = spawn(mode, Permissions(folder, {}), lambda lines: adopted(lines, act))
    try:
        assert child.lines.receive(PATIENCE) == "ready"
        child.settle()
        for _ in range(2):
            child.thaw()
            child.lines.send("spawn")
            assert child.lines.receive(PATIENCE) == "spawned"
            started = set(descendants(child.pid)) - set(child.staying)
            assert len(started) >= 2
            child.freeze()
            assert not any(map(running, started))
            assert all(map(running, child.staying))
            state = Path(f"/proc/{child.staying[-1]}/stat").read_text().rpartition(")")[2].split()[0]
            assert state == "T"
    finally:
        child.kill()
    assert not any(map(running, child.staying))


def adopted(lines: Lines, act: Callable[[Lines], None]) -> None:
    """Run `act` in a child of the sandbox's first process, which adopts what it leaves behind."""
    adopt_orphans()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        lines.send("ready")
        act(lines)
        os._exit(0)
    time.sleep(PATIENCE)


def test_nothing_is_left_whatever_a_child_leaves(mode, folder):
    def litter(lines: Lines) -> None:
        denied("open('../x', 'w').write('x')")
        Path("deep/er").mkdir(parents=True)
        Path("deep/link").symlink_to("/usr")
        Path("deep/er").chmod(0)
        Path("deep").chmod(0)
        lines.send("done")

    for _ in range(2):
        assert told(spawn(mode, Permissions(folder, {}), litter)) == "done"
    assert list(folder.iterdir()) == []
    assert os.stat("/usr").st_mode & 0o055 == 0o055


def test_limits_are_refused_where_the_shared_files_could_be_written(folder, shown, monkeypatch):
    need("limits")
    monkeypatch.setattr(landlock, "version", lambda: 0)
    shown.chmod(0o777)
    assert "could be written" in refusal("limits", Permissions(folder, {"data": shown}))


def test_namespaces_that_cannot_be_had_are_refused_with_the_reason(folder, monkeypatch):
    def refuse(name: str, *arguments: object) -> None:
        raise PermissionError(errno.EPERM, f"{name}: Operation not permitted")

    monkeypatch.setattr(sandbox, "_call", refuse)
    assert "unshare: Operation not permitted" in refusal("namespaces", Permissions(folder, {}))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_the_kernels_setting_in_the_way_is_named(tmp_path, name, bad):
    file = tmp_path / "proc/sys" / name
    file.parent.mkdir(parents=True)
    file.write_text("1" if bad == "0" else "0")
    assert "--cap-add SYS_ADMIN" in missing_for_namespaces(tmp_path)
    file.write_text(f"{bad}\n")
    assert f"sysctl {name.replace('/', '.')}=" in missing_for_namespaces(tmp_path)


def test_the_working_folder_is_the_childs_own(mode, folder):
    seen = told(spawn(mode, Permissions(folder, {}), lambda lines: lines.send(os.getcwd())))
    assert Path(str(seen)).name == HOME
