"""The last lines of a benchmark: figures in a form that programs read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def ratio_line(name: str, values: Sequence[float]) -> str:
    """A ratio over several rounds as `ratio NAME: MEDIAN [LOW, HIGH]`."""
    return f"ratio {name}: {statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
