"""Which family a name makes, and where the cache is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_env import ToyFamily

from hindsight.configs.registry import ENVIRONMENTS
from hindsight.configs.schema import Env
from hindsight.configs.setting import setting
from hindsight.envs.base import SettingError
from hindsight.envs.registry import find_family, make_family


@dataclass
class Family(ToyFamily):
    env_config: Env | None = None
    cache: Path | None = None

    def __init__(self, env_config: Env, cache: Path) -> None:
        self.env_config, self.cache = env_config, cache


def test_a_family_gets_its_settings_and_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    monkeypatch.setitem(ENVIRONMENTS.builtin, "toy", f"{__name__}:Family")
    family = make_family(Env(name="toy"))
    assert isinstance(family, Family) and family.env_config == Env(name="toy") and family.cache == tmp_path


def test_a_family_of_ones_own_is_named_by_module_and_class(monkeypatch, tmp_path):
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    assert isinstance(make_family(Env(name=f"{__name__}:Family")), Family)
    with pytest.raises(
        SettingError, match=r"cannot import nowhere: ModuleNotFoundError: No module named 'nowhere'"
    ):
        make_family(Env(name="nowhere:Family"))
    with pytest.raises(SettingError, match=r"no attribute 'Lost'"):
        make_family(Env(name=f"{__name__}:Lost"))
    with pytest.raises(SettingError, match=r"not a subclass of hindsight\.envs\.base\.EnvFamily"):
        make_family(Env(name="pathlib:Path"))
    monkeypatch.setattr(Family, "action_format", "semaphore")
    with pytest.raises(SettingError, match=r"Family\.action_format must be one of tags, tools, code"):
        make_family(Env(name=f"{__name__}:Family"))


def test_a_family_may_have_settings_of_its_own(monkeypatch, tmp_path):
    @dataclass(frozen=True)
    class Sized(Env):
        rooms: int = setting(3, "rooms of a house", low=1)

    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(Family, "Settings", Sized, raising=False)
    name = f"{__name__}:Family"
    assert make_family(Env(name=name, max_turns=7)).env_config == Sized(name=name, max_turns=7)
    assert make_family(Sized(name=name, rooms=5)).env_config.rooms == 5


def test_a_typing_mistake_is_told_the_nearest_name():
    with pytest.raises(SettingError, match=r"env\.name = 'webshp' is unknown\. Did you mean 'webshop'\?"):
        find_family("webshp")


@pytest.mark.parametrize("name", ENVIRONMENTS.builtin)
def test_listed_families_say_what_is_known_of_them(name):
    family = find_family(name)
    assert family.name == name and family.turn_limit > 0
