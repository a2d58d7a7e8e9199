"""Text of models, environments and errors, made safe to print; and durations as people write them."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

# Control characters, halves of surrogate pairs, and separators that some terminals take for a line's end.
UNSAFE = ("Cc", "Cs", "Zl", "Zp")
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str, keep: str = "\n\t") -> str:
    r"""`text` with every character that could control a terminal written out, such as \x1b.

    Args:
        keep: control characters that stay as they are.
    """

    def unsafe(one: str) -> bool:
        return unicodedata.category(one) in UNSAFE or one in DIRECTIONS

    return "".join(
        one.encode("unicode_escape").decode() if one not in keep and unsafe(one) else one for one in text
    )


def one_line(text: str, width: int) -> str:
    """`text` as one line of at most `width` terminal columns; "…" stands for what was cut."""
    line = visible(" ".join(text.split()))
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


class PlainConsole(Console):
    """Prints strings, those in tables too, as they are: no markup, no emoji, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As `Console.render_str`, which every string goes through."""
        return super().render_str(visible(text), **options)


def duration(seconds: float) -> str:
    """A rounded duration: "42 s", "12 min", "2 h 10 min", "3 d 4 h"."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def clock(seconds: float) -> str:
    """A running clock: "0:42", "1:02:03"."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
