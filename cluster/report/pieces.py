"""The text of single tokens. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import cache

import numpy as np


class Pieces:
    """Decodes ids token by token; looks up each distinct id once."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        """
        Args:
            token_bytes: what a token adds to a text (`Renderer.token_bytes`).
        """
        self._bytes = cache(token_bytes)

    def text(self, ids: np.ndarray) -> str:
        """The text of (n,) ids."""
        return b"".join(map(self._bytes, ids.tolist())).decode(errors="replace")

    def split(self, ids: np.ndarray) -> list[str]:
        """The text of each of (n,) ids, n > 0; joined they are `text(ids)`.

        A character that is spread over several tokens belongs to the one that completes it; the others before
        it have what they complete, often nothing.
        """
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        pieces = [decode(self._bytes(token)) for token in ids.tolist()]
        pieces[-1] += decode(b"", final=True)
        return pieces
