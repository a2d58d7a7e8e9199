"""Which family a name makes, and where the cache is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from toy_env import ToyFamily

import hindsight.envs.registry
from hindsight.configs.schema import Env
from hindsight.envs.registry import FAMILIES, find_family, make_family


@dataclass
class Family(ToyFamily):
    env_config: Env | None = None
    cache: Path | None = None

    def __init__(self, env_config: Env, cache: Path) -> None:
        self.env_config, self.cache = env_config, cache


def test_a_family_gets_its_settings_and_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(hindsight.envs.registry, "FAMILIES", {"toy": f"{__name__}:Family"})
    family = make_family(Env(name="toy"))
    assert isinstance(family, Family) and family.env_config == Env(name="toy") and family.cache == tmp_path
    with pytest.raises(ValueError, match=r"env\.name='alfword' is not an environment; choose one of toy"):
        make_family(Env(name="alfword"))


def test_a_family_of_ones_own_is_named_by_module_and_class(monkeypatch, tmp_path):
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    assert isinstance(make_family(Env(name=f"{__name__}:Family")), Family)
    with pytest.raises(ValueError, match=r"nowhere:Family cannot be imported: No module named 'nowhere'"):
        make_family(Env(name="nowhere:Family"))
    with pytest.raises(ValueError, match=r"no attribute and registers no environment 'Lost'"):
        make_family(Env(name=f"{__name__}:Lost"))
    with pytest.raises(ValueError, match=r"Path is no subclass of EnvFamily or gymnasium\.Env"):
        make_family(Env(name="pathlib:Path"))
    monkeypatch.setattr(Family, "action_format", "semaphore")
    with pytest.raises(ValueError, match=r"Family\.action_format has to be one of tags, tools, code"):
        make_family(Env(name=f"{__name__}:Family"))


def test_a_typing_mistake_is_told_the_nearest_name():
    with pytest.raises(ValueError, match="the nearest is webshop"):
        find_family("webshp")


@pytest.mark.parametrize("name", sorted(name for name in FAMILIES if find_spec(FAMILIES[name].split(":")[0])))
def test_listed_families_say_what_is_known_of_them(name):
    family = find_family(name)
    assert family.name == name and family.turn_limit > 0
