"""From a recipe and `key=value` overrides to a typed `Config`, or to an error that names every mistake."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException, ValidationError

from hindsight.configs.registry import REGISTRIES, UnknownName, nearest, unknown
from hindsight.configs.renamed import RENAMED
from hindsight.configs.schema import Config
from hindsight.configs.setting import settings

BASE = "base"  # key of a recipe that names the recipe it extends
RECIPES = Path(__file__).parent
_FORMS: dict[Any, DictConfig] = {}


@dataclass(frozen=True)
class Layer:
    """Some values, and where they come from."""

    source: str
    values: dict[str, Any]
    replaced: bool = False  # a method that a later layer replaced: not merged


class ConfigError(ValueError):
    """The recipe or an override cannot be read; the message has one line per mistake."""


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults, the recipe (on the one it names as `base`) and `key=value` overrides.

    Where a layer names a `method`, the method's settings come just below that layer; the method named last
    is the only one. Types are checked here, ranges and contradictions by `configs.check`.

    Args:
        recipe: path of a YAML file, or name of a built-in recipe such as "alfworld".

    Raises:
        ConfigError: unknown keys (with the nearest known one), wrong types, unreadable files, all at once.
    """
    layers = _with_methods([*(_chain(find_recipe(recipe)) if recipe else []), _overrides(overrides)])
    layers = [replace(layer, values=_located(layer)) for layer in layers]
    *_, final = _schemas([layer for layer in layers if not layer.replaced])
    merged = _form(final)
    problems = [
        problem
        for layer, schema in zip(layers, _schemas(layers), strict=True)
        if not layer.replaced
        for problem in _merge(merged, schema, final, layer)
    ]
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
    return {file.stem: file for file in sorted(RECIPES.glob("*.yaml")) if not file.stem.startswith("base")}


def methods() -> dict[str, Path]:
    """Every built-in method: name to file."""
    return {file.stem: file for file in sorted((RECIPES / "methods").glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        ConfigError: there is neither such a file nor such a built-in recipe.
    """
    path, known = Path(recipe).expanduser(), recipes()
    built_in = RECIPES / f"{str(recipe).removesuffix('.yaml')}.yaml"
    if path.name == str(recipe) and built_in.is_file() and not (path.suffix and path.is_file()):
        return built_in  # also if a folder has that name
    if path.is_file():
        return path
    raise ConfigError(
        f"Unknown recipe {str(recipe)!r}. Did you mean {nearest(path.stem, list(known))!r}? Give the path of "
        f"a YAML file, or the name of a built-in recipe: {', '.join(known)}"
    )


def _chain(path: Path) -> list[Layer]:
    """The recipe at `path` after its base, after the base of that, and so on."""
    chain: list[Layer] = []
    visited: set[Path] = set()
    while path.resolve() not in visited:
        visited.add(path.resolve())
        values = _read(path)
        parent = values.pop(BASE, None)
        chain.append(Layer(str(path), values))
        if parent is None:
            return chain[::-1]
        beside = path.parent / str(parent)
        path = beside if beside.is_file() else find_recipe(str(parent))
    raise ConfigError(f"{path}: `{BASE}` forms a cycle")


def _with_methods(layers: list[Layer]) -> list[Layer]:
    """The layers, each with the settings of the method it names below it; only the last method counts."""
    named = [index for index, layer in enumerate(layers) if layer.values.get("method")]
    stacked: list[Layer] = []
    for index, layer in enumerate(layers):
        if index in named:
            file = _method(layer)
            stacked.append(Layer(str(file), _read(file), replaced=index != named[-1]))
        stacked.append(layer)
    return stacked


def _method(layer: Layer) -> Path:
    name, known = str(layer.values["method"]), methods()
    file = known.get(name)
    if name.endswith((".yaml", ".yml")):
        beside = Path(layer.source).parent / name  # of a recipe
        file = beside if beside.is_file() else Path(name).expanduser()
    if file is None:
        raise ConfigError(f"{layer.source}: {unknown('method', name, list(known), 'FILE.yaml')}")
    if not file.is_file():
        raise ConfigError(f"{layer.source}: method = {name!r}: there is no file {file}")
    return file


def _read(path: Path) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of `key: value` lines")
    return {str(key): value for key, value in values.items()}


def _overrides(overrides: Sequence[str]) -> Layer:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{override!r} is not a valid override: write key=value, such as steps=200")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"{override!r}: the value is not YAML; quote it if it is text") from error
        assert isinstance(parsed, dict)
        values[key.strip()] = parsed["value"]
    return Layer("command line", values)


def _located(layer: Layer) -> dict[str, Any]:
    """The layer's values, with absolute paths of the Python files that they name: actors work elsewhere.

    A relative path is one from the folder of the recipe or method, or else from the working directory.
    """
    source = Path(layer.source)
    folder = source.parent if source.suffix in (".yaml", ".yml") else Path.cwd()

    def absolute(name: Any) -> Any:
        if isinstance(name, list):
            return [absolute(one) for one in name]
        file, colon, attribute = str(name).partition(".py:")
        file = file + ".py" if colon else file
        if not isinstance(name, str) or not file.endswith(".py"):
            return name
        path = Path(file).expanduser()
        path = folder / path if (folder / path).is_file() else path
        return f"{path.absolute()}{':' if colon else ''}{attribute}"

    values = dict(layer.values)
    for section, registry in REGISTRIES.items():
        name, inner = registry.key.rpartition(".")[2], values.get(section)
        if isinstance(inner, dict) and name in inner:
            values[section] = inner | {name: absolute(inner[name])}
        if registry.key in values:
            values[registry.key] = absolute(values[registry.key])
    return values


def _schemas(layers: Sequence[Layer]) -> Iterator[Config]:
    """For each layer the default configuration, with every section as the entry named so far extends it."""
    config = Config()  # no default entry extends its section
    for layer in layers:
        for section, registry in REGISTRIES.items():
            inner = layer.values.get(section)
            nested = inner.get(registry.key.rpartition(".")[2]) if isinstance(inner, dict) else None
            named = layer.values.get(registry.key, nested)
            if named is None or isinstance(named, dict):
                continue  # not named here, or of a wrong type, which merging reports
            names = [str(one) for one in (named if isinstance(named, list) else [named])]
            key, held = registry.key.rpartition(".")[2], getattr(config, section)
            try:
                extended = registry.settings(*names)
            except UnknownName as error:
                raise ConfigError(f"{layer.source}: {error}") from error
            fits = isinstance(named, type(getattr(held, key)))  # if not, merging reports it
            config = replace(config, **{section: extended(**{key: named} if fits else {})})
        yield config


def _form(config: Config) -> DictConfig:
    """OmegaConf's form of a configuration: a copy, since making one takes as long as the rest of loading."""
    key = (repr(config), *map(type, vars(config).values()))
    if key not in _FORMS:
        _FORMS[key] = OmegaConf.structured(config)
    return deepcopy(_FORMS[key])


def _merge(merged: DictConfig, schema: Config, final: Config, layer: Layer) -> Iterator[str]:
    """Put a layer's values (nested or dotted) into `merged`; yields a line for each that does not fit.

    Args:
        schema: has the settings that the layer may set.
        final: has the settings of `merged`. A layer may also set what belongs to an entry that a later layer
            replaces; that is dropped.
    """
    known = {item.key: item for item in settings(schema)}
    kept = {item.key for item in settings(final)}
    for key, value in _leaves(layer.values, known):
        if inside := next((name for name in known if name.startswith(f"{key}.")), None):
            yield f"{layer.source}: {key} = {value!r}: a section has no value; set {inside}, for example"
        elif key not in known:
            yield f"{layer.source}: unknown setting {key!r}. {RENAMED.get(key) or _near(key, known)}"
        elif key in kept and not _replaced(schema, final, known[key].of_entry):
            parent, _, name = key.rpartition(".")
            section = OmegaConf.select(merged, parent) if parent else merged
            try:
                with read_write(section):
                    OmegaConf.update(section, name, value)
            except ValidationError:
                yield f"{layer.source}: {key} = {value!r}: expected {known[key].expected}"


def _near(key: str, known: Collection[str]) -> str:
    """A hint: the setting that is meant, and the entry that has it if another one is named."""
    section, dot, _ = key.partition(".")
    owners: dict[str, str] = {}
    for one in [section] if dot else REGISTRIES:
        owners |= _owners(one, known)
    if key in owners:
        return f"It belongs to {owners[key]}"
    meant = nearest(key, [*known, *owners])
    return f"Did you mean {meant!r}?" + (f" It belongs to {owners[meant]}" if meant in owners else "")


def _owners(section: str, known: Collection[str]) -> dict[str, str]:
    """The settings that only other built-in entries of a section have, and what names the entry."""
    registry = REGISTRIES.get(section)
    owners: dict[str, str] = {}
    for name in registry.installed if registry else ():
        assert registry is not None
        for item in settings(replace(Config(), **{section: registry.settings(name)()})):
            if item.key not in known:
                owners.setdefault(item.key, registry.override(name))
    return owners


def _replaced(schema: Config, final: Config, section: str) -> bool:
    """Whether a later layer names another entry in this section; "": no section."""
    if not section:
        return False
    name = REGISTRIES[section].key.rpartition(".")[2]
    return bool(getattr(getattr(schema, section), name) != getattr(getattr(final, section), name))


def _leaves(values: dict[str, Any], known: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value and key not in known:
            yield from _leaves(value, known, f"{key}.")
        else:
            yield key, value
