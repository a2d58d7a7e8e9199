"""Where characters of a decoded response lie in the sampled ids, which are never made anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from hindsight.rollout.types import Span

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet


def token_span(ids: np.ndarray, chars: Span, decode: Callable[[np.ndarray], str]) -> Span:
    """The tokens that carry any part of the given characters of ``decode(ids)``.

    Prefixes of the ids are decoded, so a character whose bytes are spread over tokens takes all of them with
    it and a token that reaches over an edge belongs to the span.

    Args:
        ids: (n,) sampled tokens.
        chars: a non-empty range of characters of ``decode(ids)``.
        decode: ids to text. The text of a prefix is a prefix of the whole text, a last, unfinished character
            apart.
    """
    text = decode(ids)

    def finished(count: int) -> int:
        """Characters of `text` that the first `count` tokens hold completely."""
        part = decode(ids[:count])
        while not text.startswith(part):
            part = part[:-1]  # stands for a character whose last bytes are still to come
        return len(part)

    counts = range(len(ids) + 1)
    start = bisect_left(counts, chars.start, key=finished)
    # The token before starts the span if it went beyond the edge, be it by some bytes of a character only.
    if start and len(decode(ids[:start])) > chars.start:
        start -= 1
    end = bisect_left(counts, chars.end, lo=start, key=finished)
    # A sampled U+FFFD looks finished after its first byte: it ends before the token that adds a character.
    while text[chars.end - 1] == UNFINISHED and end < len(ids):
        if len(decode(ids[: end + 1])) > len(decode(ids[:end])):
            break
        end += 1
    return Span(start, end)
