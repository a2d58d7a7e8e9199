"""Answers of OpenAI-compatible endpoints, bounded while they are read.

    AsyncOpenAI(http_client=DefaultAsyncHttpxClient(event_hooks={"response": [bound_async]}))

The client reads every answer as a whole, those with an error status too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from openai import OpenAIError

LONGEST = 1 << 20  # bytes of one answer, decompressed; a chat completion has some thousands


class AnswerTooLong(OpenAIError):
    """An endpoint sent more than LONGEST bytes; the rest was not read. The client does not retry it."""

    def __init__(self) -> None:
        super().__init__(f"the response exceeds {LONGEST >> 10} KiB, which is too long for a chat completion")


def bound(response: Any) -> None:
    """A response hook of a client: reading more than LONGEST bytes raises AnswerTooLong."""
    parts = response.iter_bytes

    def bounded(*args: Any) -> Iterator[bytes]:
        read = 0
        for part in parts(*args):
            if (read := read + len(part)) > LONGEST:
                raise AnswerTooLong
            yield part

    response.iter_bytes = bounded


async def bound_async(response: Any) -> None:
    """As `bound`, for an asynchronous client."""
    parts = response.aiter_bytes

    async def bounded(*args: Any) -> AsyncIterator[bytes]:
        read = 0
        async for part in parts(*args):
            if (read := read + len(part)) > LONGEST:
                raise AnswerTooLong
            yield part

    response.aiter_bytes = bounded
