"""Landlock (Linux 5.13): a process without privileges gives up rights, with its children and for good."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

# Numbers of the system calls, the same on all platforms.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
ASK_VERSION, PATH_BENEATH = 1, 1
# linux/landlock.h: rights on files and folders by bit, and the version that knows them all
EXECUTE, READ_FILE, READ_FOLDER, WRITE_FILE, TRUNCATE = 1, 4, 8, 2, 1 << 14
READ = EXECUTE | READ_FILE | READ_FOLDER
OF_FILES = EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE
KNOWN = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
TCP, SCOPED = 3, 3  # bind and connect (version 4); abstract sockets and signals of processes outside (6)
libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """What the kernel offers; 0: nothing."""
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION))


def confine(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Leave this process these files and folders, with all beneath them, and no TCP from version 4 on.

    Its privileges must have been given up (PR_SET_NO_NEW_PRIVS).

    Raises:
        OSError: the kernel has no Landlock.
    """
    known = version()
    files = KNOWN[min(max(known, 1), 3)]
    rules = struct.pack("=QQQ", files, TCP, SCOPED)[: 8 if known < 4 else 16 if known < 6 else 24]
    ruleset = _call(CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    for paths, rights in ((readable, READ), (writable, files)):
        for path in paths:
            if path.exists():
                allowed = rights & files if path.is_dir() else rights & files & OF_FILES
                place = os.open(path, os.O_PATH)
                _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)
                os.close(place)
    _call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(number: int, *arguments: object) -> int:
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result
