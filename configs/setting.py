"""A setting: a dataclass field that carries its meaning and its range."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])
NAMES: dict[Any, str] = {
    str: "text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list[str]: "a list of text",
    str | None: "text or null",
    int | None: "an integer or null",
    bool | None: "true, false or null",
}


def setting(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, of_entry: str = ""
) -> Any:
    """A dataclass field with help text and, for numbers, an allowed range. Choices are a `Literal` type.

    Args:
        of_entry: the section whose selected entry owns this value (as the environment that `env` names owns
            its task types); a layer that selects another entry resets it.
    """
    metadata = {"help": help, "low": low, "high": high, "of_entry": of_entry}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration, with its value."""

    key: str  # dotted, such as learner.lr
    type: Any
    help: str
    low: float | None
    high: float | None
    value: Any
    of_entry: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """What a `Literal` allows; empty for other types."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def expected(self) -> str:
        """The allowed values in words, such as "an integer >= 0"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = [f">= {self.low:g}"] if self.low is not None else []
        bounds += [f"<= {self.high:g}"] if self.high is not None else []
        return " ".join([NAMES.get(self.type, str(self.type)), " and ".join(bounds)]).strip()

    @property
    def allowed(self) -> bool:
        """Whether the value is in the range. Loading has checked its type already."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool):
            return True
        if not abs(self.value) < float("inf"):  # also false for NaN
            return False
        above = self.low is None or self.value >= self.low
        return above and (self.high is None or self.value <= self.high)


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting of `config`, an instance of a dataclass, in their order; nested sections come last."""
    kind: type = type(config)
    hints = _hints(kind)
    for item in sorted(fields(config), key=lambda item: is_dataclass(getattr(config, item.name))):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            yield from settings(value, f"{key}.")
        else:
            meta = item.metadata
            low, high, of_entry = meta.get("low"), meta.get("high"), meta.get("of_entry", "")
            yield Setting(key, hints[item.name], meta.get("help", ""), low, high, value, of_entry)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def with_settings(kind: type) -> Callable[[F], F]:
    """A decorator that gives a function settings of its own, as `Settings` does for a class."""

    def attach(function: F) -> F:
        function.Settings = kind  # type: ignore[attr-defined]
        return function

    return attach
