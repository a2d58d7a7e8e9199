"""The last lines of a benchmark: figures in a form that programs read."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LINE = re.compile(r"^ratio (?P<name>.+): (?P<median>\S+) \[(?P<low>\S+), (?P<high>\S+)\]$", re.MULTILINE)


@dataclass(frozen=True)
class Ratio:
    """A figure over several rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_line(name: str, values: Sequence[float]) -> str:
    """A ratio over several rounds as `ratio NAME: MEDIAN [LOW, HIGH]`."""
    return f"ratio {name}: {Ratio(statistics.median(values), min(values), max(values))}"


def read_ratios(output: str) -> dict[str, Ratio]:
    """The ratios that a benchmark printed, by name."""
    return {
        found["name"]: Ratio(*(float(found[key]) for key in ("median", "low", "high")))
        for found in LINE.finditer(output)
    }
