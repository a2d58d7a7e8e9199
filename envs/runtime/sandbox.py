"""Isolate a forked child before it runs an agent's code.

    refusal(mode, permissions) ──► why the mode cannot be had here, tried in a child of its own; "" if it can
    spawn(mode, permissions, work) ──► a Child that runs `work` in isolation, at the other end of a socket

    namespaces  An own root folder with nothing in it but the interpreter, the system's libraries and what the
                permissions list, all read-only; no network; no process and no IPC of others; the user nobody.
                As root or, where the kernel lets users make namespaces, as anyone.
    limits      As root the user nobody if everybody may read the interpreter, otherwise our own user. Where
                the kernel has Landlock, the same files as above and no TCP (by version, see `landlock`);
                otherwise the network and all files of that user can be reached. Either way other processes
                of the user may be signaled before Linux 6.12. Refused if what is shared could be written.

In both: limits on CPU, memory, files and processes, no way to gain privileges, none of our descriptors, a
folder of its own that goes with the child, and the child dies with the process that spawned it. Linux and
the standard library only, so that any interpreter can import it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hindsight.envs.runtime import landlock
from hindsight.envs.runtime.json_lines import Lines, Lost
from hindsight.envs.runtime.linux import descendants, die_with_parent, held, kill_descendants, resident

Mode = Literal["namespaces", "limits"]
MODES: tuple[Mode, ...] = get_args(Mode)
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

    folder: Path  # of the caller's, for the children's own folders
    visible: dict[str, Path]  # path under the child's working folder: the file or folder to be seen there
    cpu: int = 600  # seconds, of each of its processes
    memory: int = 2 << 30  # bytes: of address space of each of its processes, and held by all together
    disk: int = 64 << 20  # bytes that it may write


@dataclass
class Child:
    """A running child; `lines` speaks to its `work`."""

    pid: int
    lines: Lines
    folder: Path
    memory: int
    staying: Collection[int] = ()  # of its processes, those that outlive an action

    def settle(self) -> None:
        """Take the processes that there are now as those that stay."""
        self.staying = descendants(self.pid)

    def freeze(self) -> None:
        """Stop the processes that stay, and kill all others.

        Raises:
            Lost: they multiply faster than they can be killed.
        """
        self._signal(signal.SIGSTOP)
        if not kill_descendants(self.pid, self.staying):
            raise Lost("its processes could not be ended")

    def thaw(self) -> None:
        """Let the processes that stay run again."""
        self._signal(signal.SIGCONT)

    def bound(self) -> None:
        """Raise Lost if all its processes together hold more memory than is permitted."""
        pids = [self.pid, *descendants(self.pid)]
        if sum(map(resident, pids)) > self.memory and held(pids) > self.memory:  # the first is cheap to ask
            raise Lost(f"its processes held more than {self.memory >> 20} MiB together")

    def kill(self) -> None:
        """Kill it and its descendants, and remove its folder."""
        self.lines.close()
        self._signal(signal.SIGSTOP)  # whoever is stopped starts no more of them
        kill_descendants(self.pid)
        os.kill(self.pid, signal.SIGKILL)  # not reaped before the next line, so the pid is still its own
        os.waitpid(self.pid, 0)
        _remove(self.folder)

    def _signal(self, number: int) -> None:
        for pid in {*self.staying} & {*descendants(self.pid)}:  # a pid of one that ended may be anyone's
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def refusal(mode: Mode, permissions: Permissions) -> str:
    """Why this mode cannot be had here; empty if it can."""
    shared = [Path(sys.prefix), Path(os.__file__).parent, *map(Path, permissions.visible)]
    child = spawn(mode, permissions, lambda lines: _look_around(lines, shared))
    try:
        return str(child.lines.receive(30))
    except Lost as error:
        return str(error)
    finally:
        child.kill()


def missing_for_namespaces(root: Path = Path("/")) -> str:
    """What the kernel or the container would have to allow, for a user whom it lets make no namespaces."""

    def reads(name: str, value: str) -> bool:
        file = root / "proc/sys" / name
        return file.is_file() and file.read_text().strip() == value

    for name, bad, good in (
        ("user/max_user_namespaces", "0", "15000"),
        ("kernel/unprivileged_userns_clone", "0", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ):
        if reads(name, bad):
            return f"set `sysctl {name.replace('/', '.')}={good}` on the host"
    return (
        "in a container, start it with `--cap-add SYS_ADMIN --security-opt apparmor=unconfined` or with "
        "`--security-opt seccomp=unconfined`"
    )


def spawn(mode: Mode, permissions: Permissions, work: Callable[[Lines], None]) -> Child:
    """Fork an isolated child that runs `work`, which speaks over its end of a socket.

    If isolation fails, the child's first and only message is the reason, a text.
    """
    folder = Path(tempfile.mkdtemp(dir=permissions.folder))
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if pid := os.fork():
        theirs.close()
        return Child(pid, Lines(ours), folder, permissions.memory)
    try:
        _live_and_die(theirs, parent, mode, folder, permissions, work)
    finally:
        os._exit(1)


def _remove(folder: Path) -> None:
    """Remove a folder, whatever a child has left there."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(inner := os.path.join(path, name)):
                os.chmod(inner, 0o700)  # before it is walked
    shutil.rmtree(folder)


def _live_and_die(
    channel: socket.socket,
    parent: int,
    mode: Mode,
    folder: Path,
    permissions: Permissions,
    work: Callable[[Lines], None],
) -> None:
    os.setsid()
    die_with_parent(parent)
    lines = Lines(channel)
    try:
        _keep_only(channel.fileno())
        os.umask(0o022)
        if mode == "namespaces":
            _namespaces(folder, permissions)
        else:
            _links(folder, permissions)
        os.chdir(HOME if mode == "namespaces" else folder / HOME)
        _unprivileged(nobody=_nobody(mode))
        if mode == "limits" and landlock.version():
            home = folder / HOME
            landlock.confine([*_shown(), *permissions.visible.values()], [home, Path(os.devnull)])
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


def _namespaces(root: Path, permissions: Permissions) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = NEWNS | NEWIPC | NEWPID | NEWNET
    try:
        _call("unshare", flags)
    except PermissionError:  # not root, or without the capability
        _call("unshare", flags | NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {gid} 1")
    _mount(None, Path("/"), None, REC | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={permissions.disk},mode=755")
    for path in _shown():
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


def _shown() -> list[Path]:
    """Folders of the interpreter and the system that every child may read, none within another."""
    shown = {Path(path) for path in (*SYSTEM, sys.base_prefix, sys.prefix)}
    shown |= {path.resolve() for path in shown if str(path) not in SYSTEM}
    return sorted(path for path in shown if not shown & set(path.parents))


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


def _links(folder: Path, permissions: Permissions) -> None:
    """Show without namespaces what the permissions list."""
    for passed in (permissions.folder, folder):
        passed.chmod(0o711)
    home = folder / HOME
    home.mkdir()
    for name, source in permissions.visible.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(source.resolve())
    if _nobody("limits"):
        os.chown(home, NOBODY, NOBODY)


def _nobody(mode: Mode) -> bool:
    """Whether this process can become the user nobody, who must be able to read the interpreter."""
    if mode == "namespaces":
        return os.geteuid() == 0
    places = {Path(path).resolve() for path in (sys.base_prefix, sys.prefix)}
    return os.geteuid() == 0 and all(
        folder.stat().st_mode & 1 for place in places for folder in (place, *place.parents)
    )


def _unprivileged(nobody: bool) -> None:
    if nobody:
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


def _look_around(lines: Lines, shared: Collection[Path]) -> None:
    """Send "" if what is shared can be read from inside and not be written, otherwise what is wrong."""
    try:
        for path in (os.__file__, sys.prefix):
            os.stat(path)
        Path(os.__file__).read_bytes()
        Path("written").write_text("")
        Path("written").unlink()
    except OSError as error:
        lines.send(f"the interpreter's files cannot be used from inside: {error}")
        return
    lines.send(next((f"{path} could be written" for path in shared if _writable(path)), ""))


def _writable(path: Path) -> bool:
    """Whether this process can make a file there. Tried: access(2) knows nothing of Landlock."""
    if not path.is_dir():
        return False
    try:
        descriptor, name = tempfile.mkstemp(dir=path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    os.close(descriptor)
    os.unlink(name)
    return True


def _mount(
    source: str | None, target: Path, kind: str | None, flags: int, options: str | None = None
) -> None:
    arguments = [text.encode() if text else None for text in (source, str(target), kind)]
    _call("mount", *arguments, ctypes.c_ulong(flags), options.encode() if options else None)


def _call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
