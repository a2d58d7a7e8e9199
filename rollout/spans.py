"""Map characters of a decoded response to its sampled ids, without re-tokenizing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from hindsight.rollout.types import Span

UNFINISHED = "\ufffd"  # a decoder's replacement for an incomplete character


def token_span(ids: np.ndarray, chars: Span, decode: Callable[[np.ndarray], str]) -> Span:
    """Return the tokens that contain any part of the given characters of ``decode(ids)``.

    This decodes prefixes of the ids. The span includes all tokens of a character whose bytes are split over
    tokens, and tokens that extend beyond the range.

    Args:
        ids: (n,) sampled tokens.
        chars: a non-empty range of characters of ``decode(ids)``.
        decode: ids to text. A prefix of the ids decodes to a prefix of the text, except for an incomplete
            last character.
    """
    text = decode(ids)

    def finished(count: int) -> int:
        """Return the number of characters of `text` that the first `count` tokens contain completely."""
        part = decode(ids[:count])
        while not text.startswith(part):
            part = part[:-1]  # replacement for an incomplete character
        return len(part)

    counts = range(len(ids) + 1)
    start = bisect_left(counts, chars.start, key=finished)
    # The token before belongs to the span if it extends into it, even by a part of a character.
    if start and len(decode(ids[:start])) > chars.start:
        start -= 1
    end = bisect_left(counts, chars.end, lo=start, key=finished)
    # A sampled U+FFFD looks complete after its first byte. It ends before the token that adds a character.
    while text[chars.end - 1] == UNFINISHED and end < len(ids):
        if len(decode(ids[: end + 1])) > len(decode(ids[:end])):
            break
        end += 1
    return Span(start, end)
