"""Find and make the environment family that the section `env` of a configuration names."""

from __future__ import annotations

from typing import get_args

from hindsight.configs.paths import cache_root
from hindsight.configs.registry import ENVIRONMENTS, UnknownName
from hindsight.configs.schema import Env
from hindsight.envs.base import ActionFormat, EnvFamily, SettingError


def find_family(name: str) -> type[EnvFamily]:
    """The class that `env.name` stands for.

    Raises:
        SettingError: there is no such environment, or its class is incomplete.
    """
    try:
        found = ENVIRONMENTS.find(name)
    except UnknownName as error:
        raise SettingError(str(error)) from error
    if not issubclass(found, EnvFamily):
        from hindsight.envs.from_gym import adopt

        return adopt(name, found)
    if getattr(found, "action_format", None) not in get_args(ActionFormat):
        known = ", ".join(get_args(ActionFormat))
        raise SettingError(f"env.name = {name!r}: {found.__name__}.action_format must be one of {known}")
    family: type[EnvFamily] = found
    return family


def make_family(env: Env) -> EnvFamily:
    """Make the family of `env.name`.

    Raises:
        SettingError: there is no such environment, or a setting does not fit it.
    """
    family = find_family(env.name)
    try:
        return family(ENVIRONMENTS.complete(env), cache_root())
    except ValueError as error:
        raise SettingError(str(error)) from error
