"""A training step's groups without loss, from which `hindsight replay` trains again. Pure."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from hindsight.cluster.report.lines import Row
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Group

FORMAT = 2  # raised when a reader of the version before would misread a row


class GroupError(ValueError):
    """A row is not a group of this version."""


@dataclass(frozen=True)
class Recorded:
    """A group, and the version of the learner's weights before the step that trained on it."""

    group: Group
    version: int


def group_row(one: SampleGroup) -> Row:
    """A group of a finished step; `lags` must be known."""
    [sample, *_] = one.samples
    version = int(sample.column("lags")[0] + sample.column("versions")[0])
    row: Row = msgspec.to_builtins(Recorded(one.group, version), enc_hook=_encode)
    return {"format": FORMAT, **row}


def read_group(row: Mapping[str, Any]) -> Recorded:
    """What `group_row` was made of. Observations of an environment's own class become plain ones.

    Raises:
        GroupError: the row is of another version, or not complete.
    """
    if row.get("format") != FORMAT:
        raise GroupError(f"format {row.get('format')!r}, and this version of Hindsight reads {FORMAT}")
    try:
        return msgspec.convert(row, Recorded, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise GroupError(f"not a complete group: {error}") from error


def _encode(value: Any) -> Any:
    """An array as its type and its bytes in base64, a NumPy number as Python's.

    Anything else can only be in a field that an environment's own observation class adds, and nobody reads
    it: `envs.boundary` checks the others.
    """
    if isinstance(value, np.ndarray):
        return {value.dtype.name: b64encode(value.tobytes()).decode()}
    return value.item() if isinstance(value, np.generic) else None


def _decode(kind: type, value: Any) -> np.ndarray:
    [(dtype, content)] = dict(value).items()
    return np.frombuffer(b64decode(content, validate=True), dtype)
