"""Isolate a forked child before it runs an agent's code, as far as the platform allows.

    strongest(permissions) ──► the first of MODES that works here     each is tried in a child of its own
    spawn(mode, permissions, work) ──► a Child that runs `work` in isolation, at the other end of a socket

    namespaces  An own root folder with nothing in it but the interpreter, the system's libraries and what the
                permissions list, all read-only; no network; no process and no IPC of others; the user nobody.
                As root or, where the kernel lets users make namespaces, as anyone.
    user        The user nobody (needs root). The network and files that everybody may read can be reached.
    limits      Our own user, without capabilities. The network, our files and processes can be reached.

In every mode: limits on CPU, memory, files and processes, no way to gain privileges, none of our descriptors,
and the child dies with the process that spawned it. Linux and the standard library only, so that any
interpreter can import it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hindsight.envs.runtime.json_lines import Lines, Lost
from hindsight.envs.runtime.linux import die_with_parent

MODES = ("namespaces", "user", "limits")
NOBODY = 65534
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")  # besides the interpreter's own folders
HOME = "home"  # the child's working folder, under that of its permissions
# linux/sched.h, sys/mount.h, linux/prctl.h, linux/capability.h
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
SET_NO_NEW_PRIVS = 38
CAPABILITIES_V3 = 0x20080522
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Permissions:
    """What a child may see and use."""

    folder: Path  # an empty folder of the caller's, which removes it afterwards
    visible: dict[str, Path]  # path under the child's working folder: the file or folder to be seen there
    cpu: int = 600  # seconds, of the whole child
    memory: int = 2 << 30  # bytes of address space
    disk: int = 64 << 20  # bytes that it may write


@dataclass
class Child:
    """A running child; `lines` speaks to its `work`."""

    pid: int
    lines: Lines

    def kill(self) -> None:
        """Kill it and its children."""
        self.lines.close()
        os.kill(self.pid, signal.SIGKILL)  # not reaped before the next line, so the pid is still its own
        os.waitpid(self.pid, 0)


def strongest(permissions: Permissions) -> tuple[str, dict[str, str]]:
    """The first mode that works here, and the reason why each stronger one does not.

    Raises:
        OSError: none does.
    """
    reasons: dict[str, str] = {}
    for mode in MODES:
        child = spawn(mode, permissions, _look_around)
        try:
            reason = child.lines.receive(30)
        except Lost as error:
            reason = str(error)
        finally:
            child.kill()
            clear(permissions.folder)
        if not reason:
            return mode, reasons
        reasons[mode] = reason
    raise OSError(f"no child can be isolated here: {json.dumps(reasons)}")


def spawn(mode: str, permissions: Permissions, work: Callable[[Lines], None]) -> Child:
    """Fork an isolated child that runs `work`, which speaks over its end of a socket.

    If isolation fails, the child's first and only message is the reason, a text.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if pid := os.fork():
        theirs.close()
        return Child(pid, Lines(ours))
    try:
        _live_and_die(theirs, parent, mode, permissions, work)
    finally:
        os._exit(1)


def clear(folder: Path) -> None:
    """Empty a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path)


def _live_and_die(
    channel: socket.socket, parent: int, mode: str, permissions: Permissions, work: Callable[[Lines], None]
) -> None:
    os.setsid()
    die_with_parent(parent)
    lines = Lines(channel)
    try:
        _keep_only(channel.fileno())
        os.umask(0o022)
        if mode == "namespaces":
            _namespaces(permissions)
        else:
            _links(permissions, mode)
        os.chdir(HOME if mode == "namespaces" else permissions.folder / HOME)
        _unprivileged(mode)
        _limit(permissions)
    except OSError as error:
        lines.send(f"{type(error).__name__}: {error}")
        return
    work(lines)


def _keep_only(channel: int) -> None:
    """Close every descriptor but the channel; the standard ones lead nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, channel)
    os.closerange(channel + 1, os.sysconf("SC_OPEN_MAX"))


def _namespaces(permissions: Permissions) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = NEWNS | NEWIPC | NEWPID | NEWNET
    _call("unshare", flags if uid == 0 else flags | NEWUSER)
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")
    _mount(None, Path("/"), None, REC | PRIVATE)
    root = permissions.folder
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={permissions.disk},mode=755")
    shown = {Path(path) for path in (*SYSTEM, sys.base_prefix, sys.prefix)}
    shown |= {path.resolve() for path in shown if str(path) not in SYSTEM}
    for path in sorted(path for path in shown if not shown & set(path.parents)):
        _show(path, root / path.relative_to("/"))
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    _mount(os.devnull, root / "dev/null", None, BIND)
    home = root / HOME
    home.mkdir()
    for name, source in permissions.visible.items():
        _show(source.resolve(), home / name)
    os.chown(home, NOBODY, NOBODY)
    if pid := os.fork():  # the new process namespace begins with the next child
        os.waitpid(pid, 0)
        os._exit(0)
    die_with_parent()
    os.chroot(root)
    os.chdir("/")


def _show(source: Path, target: Path) -> None:
    """Mount the file or folder `source` read-only at `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(os.readlink(source))
        return
    if not source.exists():
        return
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(str(source), target, None, BIND | REC)
    kept = os.statvfs(source).f_flag & NOEXEC  # a namespace of ours may not take it off
    _mount(None, target, None, BIND | REMOUNT | RDONLY | NOSUID | NODEV | kept)


def _links(permissions: Permissions, mode: str) -> None:
    """Show in the weaker modes what the permissions list."""
    permissions.folder.chmod(0o711)
    home = permissions.folder / HOME
    home.mkdir()
    for name, source in permissions.visible.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(source.resolve())
    if mode == "user":
        os.chown(home, NOBODY, NOBODY)


def _unprivileged(mode: str) -> None:
    if mode == "user" or (mode == "namespaces" and os.geteuid() == 0):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        die_with_parent()  # again: a change of the user undoes it
    header, none = struct.pack("=Ii", CAPABILITIES_V3, 0), bytes(24)
    _call("capset", header, none)
    _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(permissions: Permissions) -> None:
    for limit, most in (
        (resource.RLIMIT_CPU, permissions.cpu),
        (resource.RLIMIT_AS, permissions.memory),
        (resource.RLIMIT_FSIZE, permissions.disk),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_NPROC, 4096),  # of the user, whom all children share: enough for many, no fork bomb
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def _look_around(lines: Lines) -> None:
    """Send "" if the interpreter's files can be read from inside, otherwise the reason why not."""
    try:
        for path in (os.__file__, sys.prefix):
            os.stat(path)
        Path(os.__file__).read_bytes()
        Path("written").write_text("")
        Path("written").unlink()
    except OSError as error:
        lines.send(str(error))
    else:
        lines.send("")


def _mount(
    source: str | None, target: Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = [text.encode() if text else None for text in (source, str(target), kind)]
    _call("mount", *arguments, ctypes.c_ulong(flags), options.encode() if options else None)


def _call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
