"""Which environments there are, and where what they generate is kept."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from configs.schema import Env
from envs.base import DataMissing, EnvFamily

FAMILIES = {"alfworld": "envs.alfworld:AlfworldFamily"}  # imported only when chosen


def make_family(env: Env) -> EnvFamily:
    """The family that `env.name` names.

    Raises:
        ValueError: there is no such environment.
        DataMissing: no cache folder can be found for what it generates.
    """
    if env.name not in FAMILIES:
        raise ValueError(f"env.name={env.name!r} is not an environment; choose one of {', '.join(FAMILIES)}")
    module, family = FAMILIES[env.name].split(":")
    return getattr(import_module(module), family)(env, cache_root())


def cache_root() -> Path:
    """$HINDSIGHT_CACHE, or `.cache/hindsight` in the project that holds the working directory.

    Raises:
        DataMissing: neither is there.
    """
    if override := os.environ.get("HINDSIGHT_CACHE"):
        return Path(override).expanduser().resolve()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "envs").is_dir():
            return folder / ".cache" / "hindsight"
    raise DataMissing(f"no project folder at or above {here}: set HINDSIGHT_CACHE to a folder for the cache")
