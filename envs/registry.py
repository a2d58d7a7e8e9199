"""Which environments there are, and where what they generate is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from configs.load import nearest
from configs.place import is_upload
from configs.schema import Env
from envs.base import ANSWERS, DataMissing, EnvFamily, SettingError

FAMILIES = {  # name → module:class, imported only when chosen
    "alfworld": "envs.alfworld:AlfworldFamily",
    "webshop": "envs.webshop:WebShopFamily",
    "taubench": "envs.taubench:TauFamily",
    "appworld": "envs.appworld:AppWorldFamily",
    "bfcl": "envs.bfcl:BfclFamily",
}


def find_family(name: str) -> type[EnvFamily]:
    """The class that `name` stands for: one of FAMILIES, or a module:Class of one's own.

    Raises:
        ValueError: there is no such environment, or it is no EnvFamily.
    """
    place = FAMILIES.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        raise ValueError(
            f"env.name={name!r} is not an environment; choose one of {', '.join(FAMILIES)} "
            f"(the nearest is {nearest(name, list(FAMILIES))}), or name your own as module:Class"
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"env.name={name!r}: {place} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, EnvFamily)):
        raise ValueError(f"env.name={name!r}: {place} is no subclass of envs.base.EnvFamily")
    if getattr(found, "answers", None) not in ANSWERS:
        raise ValueError(f"env.name={name!r}: {place}.answers has to be one of {', '.join(ANSWERS)}")
    return found


def make_family(env: Env) -> EnvFamily:
    """The family that `env.name` names.

    Raises:
        SettingError: there is no such environment, or it lacks what `env` asks of it.
        DataMissing: no cache folder can be found for what it generates.
    """
    root = cache_root()
    try:
        make: Callable[[Env, Path], EnvFamily] = find_family(env.name)
        return make(env, root)
    except ValueError as error:
        raise SettingError(str(error)) from error


def cache_root() -> Path:
    """$HINDSIGHT_CACHE, or `.cache/hindsight` in the project that holds the working directory; of a project
    that Ray copied for a submitted job, `~/.cache/hindsight`.

    Raises:
        DataMissing: neither is there.
    """
    if override := os.environ.get("HINDSIGHT_CACHE"):
        return Path(override).expanduser().resolve()
    here = Path.cwd()
    if is_upload(here):
        return Path.home() / ".cache" / "hindsight"
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "envs").is_dir():
            return folder / ".cache" / "hindsight"
    raise DataMissing(f"no project folder at or above {here}: set HINDSIGHT_CACHE to a folder for the cache")
