"""The append-only token record of one episode: what the model was shown and what it sampled, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hindsight.envs.base import Observation
from hindsight.rollout.render import Renderer
from hindsight.rollout.spans import token_span
from hindsight.rollout.types import Span, TokenSequence


@dataclass(frozen=True)
class Reply:
    """One assistant turn as it stands in the conversation."""

    sequence: int  # index into `Conversation.sequences()`
    start: int  # first position of the turn's tokens in that sequence
    end: int  # one past the last
    text: str  # decoded, without the end-of-turn token
    action: str | None  # None: malformed
    action_span: Span | None  # positions in that sequence


class Conversation:
    """Turns of one episode as token sequences, the same way for either prompt preset.

    Use `prompt`, then `append_sampled`, turn by turn. A prompt that is not answered leaves no trace.
    """

    def __init__(self, renderer: Renderer, preamble: str = "") -> None:
        """
        Args:
            preamble: stands in front of the first observation's text.
        """
        self._renderer = renderer
        self._preamble = preamble
        self._growing = renderer.prompt.preset == "history"
        self._ids: list[list[np.ndarray]] = []  # per sequence, chunks in order
        self._logprobs: list[list[np.ndarray]] = []
        self._first: Observation | None = None
        self._past: list[tuple[Observation, str | None]] = []
        self._asked: tuple[Observation, np.ndarray] | None = None  # observation and the ids it adds

    def prompt(self, observation: Observation) -> tuple[int, np.ndarray]:
        """Show an observation.

        Returns:
            The index of the sequence that the turn belongs to and the whole context, (n,) int32.
        """
        if self._first is None:
            if self._preamble:
                observation = replace(observation, text=f"{self._preamble}\n\n{observation.text.lstrip()}")
            self._first = observation
        if not self._growing:
            added = self._renderer.window(self._first, self._past, observation, step=len(self._past) + 1)
            self._asked = (observation, added)
            return len(self._ids), added
        if not self._ids:
            added = self._renderer.start(observation)
            self._asked = (observation, added)
            return 0, added
        added = self._renderer.follow(self._ids[0][-1], observation)
        self._asked = (observation, added)
        return 0, np.concatenate([*self._ids[0], added])

    def append_sampled(self, ids: np.ndarray, logprobs: np.ndarray | None = None) -> Reply:
        """Enter the response to the last prompt.

        Args:
            ids: (n,) tokens as the engine sampled them, n > 0 (or `Renderer.respond`'s, for a demonstration).
            logprobs: (n,) log-probs of those; None enters NaN.
        """
        if self._asked is None:
            raise ValueError("append_sampled needs a prompt before it")
        ids = np.asarray(ids, dtype=np.int32)
        if logprobs is None:
            logprobs = np.full(len(ids), np.nan, dtype=np.float32)
        if len(ids) == 0 or len(ids) != len(logprobs):
            raise ValueError(f"a response needs tokens, one log-prob each: {len(ids)} and {len(logprobs)}")
        (observation, added), self._asked = self._asked, None
        if not self._growing or not self._ids:
            self._ids.append([])
            self._logprobs.append([])
        chunks, logprob_chunks = self._ids[-1], self._logprobs[-1]
        start = sum(map(len, chunks)) + len(added)
        chunks += [added, ids]
        logprob_chunks += [
            np.full(len(added), np.nan, dtype=np.float32),
            np.asarray(logprobs, dtype=np.float32),
        ]
        reply = self._read(ids, start)
        self._past.append((observation, reply.action))
        return reply

    def sequences(self) -> tuple[TokenSequence, ...]:
        """Every sequence so far, log-probs NaN where nothing was sampled."""
        return tuple(
            TokenSequence(np.concatenate(ids), np.concatenate(logprobs))
            for ids, logprobs in zip(self._ids, self._logprobs, strict=True)
        )

    def _read(self, ids: np.ndarray, start: int) -> Reply:
        said = ids[:-1] if ids[-1] == self._renderer.end_id else ids
        text = self._renderer.decode(said)
        chars = self._renderer.form.find(text)
        sequence, end = len(self._ids) - 1, start + len(ids)
        if chars is None:
            return Reply(sequence, start, end, text, None, None)
        tokens = token_span(said, chars, self._renderer.decode)
        span = Span(start + tokens.start, start + tokens.end)
        return Reply(sequence, start, end, text, text[chars.start : chars.end], span)
