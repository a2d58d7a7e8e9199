"""From a recipe and `key=value` overrides to a typed `Config`, or to an error that names every mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException, ValidationError

from hindsight.configs.check import allowed, settings
from hindsight.configs.schema import Config

BASE = "base"  # key of a recipe that names the recipe it changes, relative to its own folder
RECIPES = Path(__file__).parent


class ConfigError(ValueError):
    """The recipe or an override cannot be read; the message has one line per mistake."""


def load(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the recipe (after the ones it names as `base`), then `key=value` overrides.

    `recipe` is the path of a YAML file or the name of a built-in one, such as "alfworld".

    What names a `method` is laid over that method's settings (configs/methods); the method that was named
    last is the only one. Types are checked here; ranges and contradictions by `configs.check.check`.

    Raises:
        ConfigError: unknown keys (with the nearest known one), wrong types, unreadable files, all at once.
    """
    recipes = _recipes(find_recipe(recipe)) if recipe is not None else []
    named = [(str(file), values) for file, values in recipes]
    named.append(("command line", _parse_overrides(overrides)))
    methods_named = [_method(source, values) for source, values in named]
    last = max((index for index, layer in enumerate(methods_named) if layer), default=-1)
    layers = [
        layer
        for index, own in enumerate(named)
        for layer in (*(methods_named[index] if index == last else ()), own)
    ]
    merged = OmegaConf.structured(Config)
    problems = [problem for source, values in layers for problem in _merge(merged, source, values)]
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or a value left as ???
        raise ConfigError(str(error).splitlines()[0]) from error
    assert isinstance(config, Config)
    return config


def recipes() -> dict[str, Path]:
    """Every built-in recipe: name to file."""
    return {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        ConfigError: there is neither such a file nor such a built-in recipe.
    """
    path, known = Path(recipe).expanduser(), recipes()
    if path.exists():
        return path
    if (name := str(recipe).removesuffix(".yaml")) in known:
        return known[name]
    raise ConfigError(
        f"Unknown recipe '{recipe}'. Did you mean '{nearest(path.stem, list(known))}'? Give the path of a "
        f"YAML file or one of the built-in recipes: {', '.join(known)}"
    )


def _recipes(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The recipe at `path` behind the chain of its bases, furthest base first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if path.resolve() in [file.resolve() for file, _ in chain]:
            raise ConfigError(f"{path}: its `{BASE}` leads back to itself")
        values = _read(path)
        parent = values.pop(BASE, None)
        chain.append((path, values))
        if parent is None:
            return chain[::-1]
        beside = path.parent / str(parent)
        path = beside if beside.exists() else find_recipe(str(parent))


def methods() -> dict[str, Path]:
    """Every method by its name: the file of its settings."""
    return {file.stem: file for file in sorted((RECIPES / "methods").glob("*.yaml"))}


def _method(source: str, values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The settings of the method that a layer names, if it names one."""
    name = values.get("method")
    if not name:
        return []
    known = methods()
    if name not in known:
        raise ConfigError(
            f"{source}: method = {name!r} is not known; the nearest is {nearest(str(name), list(known))}. "
            f"There are {', '.join(known)}"
        )
    return [(str(known[name]), _read(known[name]))]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a list of `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r} is not an override: write key=value, for example steps=200")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{override!r}: the value is not YAML; quote it if it is text") from error
        assert isinstance(parsed, dict)
        values[key.strip()] = parsed["value"]
    return values


def _merge(merged: DictConfig, source: str, values: dict[str, Any]) -> Iterator[str]:
    """Puts `values` (nested or dotted) into `merged`; yields a line for each that does not fit."""
    known = {key: item for key, item, _ in settings(Config())}
    for key, value in _leaves(values, known):
        if any(name.startswith(f"{key}.") for name in known):
            yield f"{source}: {key} = {value!r} is not allowed: it is a section, set its keys"
        elif key not in known:
            yield f"{source}: unknown key {key}; the nearest is {nearest(key, list(known))}"
        else:
            parent, _, name = key.rpartition(".")
            section = OmegaConf.select(merged, parent) if parent else merged
            try:
                with read_write(section):
                    OmegaConf.update(section, name, value)
            except ValidationError:
                yield f"{source}: {key} = {value!r} is not allowed: {allowed(known[key])}"


def _leaves(values: dict[str, Any], known: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in known:
            yield from _leaves(value, known, f"{key}.")
        else:
            yield key, value


def nearest(key: str, known: Sequence[str]) -> str:
    """The known dotted key most like `key`: by the whole name and by its last part."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return (whole + last) / 2

    return max(known, key=likeness)
