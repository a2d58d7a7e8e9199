"""Interpreters for environments whose packages conflict with vLLM's: `hindsight envs install NAME|all`.

    envs/NAME/requirements.txt ──uv──► CACHE/interpreters/NAME-<digest> ──upstream's own install──► ready

An interpreter's name holds a digest of what it was made from, so that another list makes another one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hindsight.configs.paths import cache_root
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.envs.base import DataMissing, EnvError, SettingError
from hindsight.envs.runtime.files import atomic_dir

HERE = Path(__file__).absolute().parents[1]
# The environments with an interpreter of their own, and what they need beyond envs/NAME/requirements.txt, as
# arguments of that interpreter. AppWorld unpacks its encrypted apps into its own folder, without the network.
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "appworld": (("-m", "appworld.cli", "install"), ("-m", "compileall", "-q", "{packages}/appworld")),
}


def install_interpreter(
    name: str, cache: Path | None = None, tell: Callable[[str], None] = lambda line: print(line, flush=True)
) -> Path | None:
    """Make the interpreter that the environment `name` needs, unless it exists.

    Args:
        name: an environment.
        cache: the cache folder; by default `configs.paths.cache_root()`.
        tell: called with a line of text for every step.

    Returns: the interpreter, or None if the environment runs in the main one.

    Raises:
        SettingError: there is no such environment.
        EnvError: a step failed; nothing is left of the attempt.
    """
    if name not in ENVIRONMENTS.builtin:
        raise SettingError(f"{name!r} is not an environment; choose one of {', '.join(ENVIRONMENTS.builtin)}")
    if name not in STEPS:
        tell(f"{name} comes with the main environment: nothing to install")
        return None
    folder = _folder(name, cache or cache_root())
    if folder.is_dir():
        tell(f"{name} is installed in {folder}")
    else:
        tell(f"installing {name} into {folder}")
        atomic_dir(folder, lambda draft: _build(name, draft, tell))
    return folder / "bin" / "python"


def interpreter(name: str, cache: Path) -> Path:
    """The interpreter that `install_interpreter` made for the environment `name`.

    Raises:
        DataMissing: there is none.
    """
    folder = _folder(name, cache)
    if not folder.is_dir():
        raise DataMissing(f"run `hindsight envs install {name}`")
    return folder / "bin" / "python"


def run_command(command: Sequence[str], **variables: str) -> None:
    """Run a command without input.

    Raises:
        EnvError: it failed; the message ends with the end of its output.
    """
    done = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise EnvError(f"`{' '.join(command)}` failed ({done.returncode}):\n{done.stdout[-2000:]}")


def _listed(name: str) -> Path:
    """The list of that interpreter's packages and versions."""
    return HERE / name / "requirements.txt"


def _folder(name: str, cache: Path) -> Path:
    version = ".".join(map(str, sys.version_info[:3]))
    origin = [_listed(name).read_bytes(), repr(STEPS[name]).encode(), version.encode()]
    return cache / "interpreters" / f"{name}-{hashlib.sha256(b' '.join(origin)).hexdigest()[:12]}"


def _build(name: str, draft: Path, tell: Callable[[str], None]) -> None:
    began = time.monotonic()

    def step(text: str, command: Sequence[str], **variables: str) -> None:
        tell(f"  {text} ({time.monotonic() - began:.0f} s)")
        run_command(command, **variables)

    uv = [sys.executable, "-m", "uv"]  # in every environment that `make setup` has made
    python = str(draft / "bin" / "python")
    step("an interpreter of its own", [*uv, "venv", "--clear", "--python", sys.executable, str(draft)])
    listed = str(_listed(name))
    step(
        f"its packages, from {listed}",
        [*uv, "pip", "install", "--compile-bytecode", "--python", python, "--no-deps", "-r", listed],
    )
    packages = next(draft.glob("lib/python*/site-packages"))
    for arguments in STEPS[name]:
        filled = [argument.format(packages=packages) for argument in arguments]
        step(f"python {' '.join(arguments)}", [python, *filled], APPWORLD_CACHE=str(draft / "share"))
    tell(f"  done ({time.monotonic() - began:.0f} s)")
