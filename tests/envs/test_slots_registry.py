"""Which family a name makes, and where the cache is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_env import ToyFamily

import envs.registry
from configs.schema import Env
from envs.base import DataMissing
from envs.registry import cache_root, make_family


@dataclass
class Family(ToyFamily):
    env_config: Env | None = None
    cache: Path | None = None

    def __init__(self, env_config: Env, cache: Path) -> None:
        self.env_config, self.cache = env_config, cache


def test_a_family_gets_its_settings_and_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HINDSIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(envs.registry, "FAMILIES", {"toy": f"{__name__}:Family"})
    family = make_family(Env(name="toy"))
    assert isinstance(family, Family) and family.env_config == Env(name="toy") and family.cache == tmp_path
    with pytest.raises(ValueError, match=r"env\.name='alfword' is not an environment; choose one of toy"):
        make_family(Env(name="alfword"))


def test_the_cache_lies_in_the_project_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("HINDSIGHT_CACHE", raising=False)
    (tmp_path / "envs" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "envs" / "deep")
    with pytest.raises(DataMissing, match="set HINDSIGHT_CACHE"):
        cache_root()
    (tmp_path / "pyproject.toml").touch()
    assert cache_root() == tmp_path / ".cache" / "hindsight"
