"""A setting: a dataclass field with its meaning and what it may be."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    form: str = "",
) -> Any:
    """A dataclass field that carries its help text and allowed values, for `configs.check` to read.

    `form` is another form that text may have beside its choices, such as "module:Class": its words stand for
    any dotted names.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "form": form}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
