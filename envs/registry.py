"""The environments by name, and where generated data are cached."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from hindsight.configs.load import nearest
from hindsight.configs.paths import cache_root
from hindsight.configs.schema import Env
from hindsight.envs.base import ACTION_FORMATS, EnvFamily, SettingError

FAMILIES = {  # name → module:class, imported only when chosen
    "alfworld": "hindsight.envs.alfworld.env:AlfworldFamily",
    "webshop": "hindsight.envs.webshop.env:WebShopFamily",
    "taubench": "hindsight.envs.taubench.env:TauFamily",
    "appworld": "hindsight.envs.appworld.env:AppWorldFamily",
    "bfcl": "hindsight.envs.bfcl.env:BfclFamily",
}


def find_family(name: str) -> type[EnvFamily]:
    """The class that `name` stands for: one of FAMILIES, or one of your own.

    Args:
        name: of FAMILIES; or module:Class, an EnvFamily or a text gymnasium.Env; or the id of a registered
            text gymnasium.Env, as [module:]id.

    Raises:
        ValueError: there is no such environment.
    """
    place = FAMILIES.get(name, name)
    module, colon, attribute = place.rpartition(":")
    try:
        found = getattr(import_module(module), attribute, None) if colon else None
    except ImportError as error:
        raise ValueError(f"env.name={name!r}: {place} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, EnvFamily)):
        from hindsight.envs.from_gym import adopt

        adopted = adopt(name, found)
        if adopted is None:
            raise ValueError(_unknown(name, found))
        return adopted
    if getattr(found, "action_format", None) not in ACTION_FORMATS:
        raise ValueError(
            f"env.name={name!r}: {place}.action_format has to be one of {', '.join(ACTION_FORMATS)}"
        )
    return found


def _unknown(name: str, found: object) -> str:
    """Why `name`, which stands for `found`, is no environment."""
    module, colon, attribute = name.rpartition(":")
    if found is not None:
        return f"env.name={name!r}: {attribute} is no subclass of EnvFamily or gymnasium.Env"
    if colon:
        return f"env.name={name!r}: {module} has no attribute and registers no environment {attribute!r}"
    return (
        f"env.name={name!r} is not an environment; choose one of {', '.join(FAMILIES)} (the nearest is "
        f"{nearest(name, list(FAMILIES))}), or name your own as module:Class or by its id in Gymnasium"
    )


def make_family(env: Env) -> EnvFamily:
    """Make the family of `env.name`.

    Raises:
        SettingError: there is no such environment, or its settings are wrong.
    """
    root = cache_root()
    try:
        make: Callable[[Env, Path], EnvFamily] = find_family(env.name)
        return make(env, root)
    except ValueError as error:
        raise SettingError(str(error)) from error
