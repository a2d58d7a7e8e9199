"""Append-only token record of one episode: prompts and sampled responses, in order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hindsight.envs.base import Observation
from hindsight.rollout.render import Renderer
from hindsight.rollout.spans import token_span
from hindsight.rollout.types import Span, TokenSequence


@dataclass(frozen=True)
class Reply:
    """One assistant turn of a conversation."""

    sequence: int  # index into `Conversation.sequences()`
    start: int  # position of the turn's first token in that sequence
    end: int  # one past the last
    text: str  # decoded, without the end-of-turn token
    action: str | None  # None if malformed
    action_span: Span | None  # positions in that sequence


class Conversation:
    """Turns of one episode as token sequences, for either prompt preset.

    Call `prompt`, then `append_sampled`, for each turn. A prompt without a response is not recorded.
    """

    def __init__(self, renderer: Renderer, preamble: str = "") -> None:
        """Start an empty conversation.

        Args:
            preamble: text before the first observation.
        """
        self._renderer = renderer
        self._preamble = preamble
        self._growing = renderer.prompt.preset == "history"
        self._ids: list[list[np.ndarray]] = []  # per sequence, chunks in order
        self._logprobs: list[list[np.ndarray]] = []
        self._versions: list[list[np.ndarray]] = []
        self._first: Observation | None = None
        self._past: list[tuple[Observation, str | None]] = []
        self._asked: tuple[Observation, np.ndarray] | None = None  # observation and the ids it appends

    def prompt(self, observation: Observation) -> tuple[int, np.ndarray]:
        """Add an observation to the context.

        Returns:
            The index of the turn's sequence, and the full context, (n,) int32.
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

    def append_sampled(
        self, ids: np.ndarray, logprobs: np.ndarray | None = None, versions: np.ndarray | None = None
    ) -> Reply:
        """Append the response to the last prompt.

        Args:
            ids: (n,) tokens sampled by the engine, n > 0 (for a demonstration, from `Renderer.respond`).
            logprobs: (n,) log-probs of `ids`; None for NaN.
            versions: (n,) weight versions that sampled `ids`; None for -1.

        Raises:
            ValueError: there is no prompt, no token, or not one log-prob and version per token.
        """
        if self._asked is None:
            raise ValueError("call prompt before append_sampled")
        ids = np.asarray(ids, dtype=np.int32)
        if logprobs is None:
            logprobs = np.full(len(ids), np.nan, dtype=np.float32)
        if versions is None:
            versions = np.full(len(ids), -1, dtype=np.int32)
        if len(ids) == 0 or not len(ids) == len(logprobs) == len(versions):
            counts = f"{len(ids)}, {len(logprobs)} and {len(versions)}"
            raise ValueError(f"a response needs tokens, one log-prob and one version each: {counts}")
        (observation, added), self._asked = self._asked, None
        if not self._growing or not self._ids:
            self._ids.append([])
            self._logprobs.append([])
            self._versions.append([])
        start = sum(map(len, self._ids[-1])) + len(added)
        self._ids[-1] += [added, ids]
        self._logprobs[-1] += [
            np.full(len(added), np.nan, dtype=np.float32),
            np.asarray(logprobs, dtype=np.float32),
        ]
        self._versions[-1] += [
            np.full(len(added), -1, dtype=np.int32),
            np.asarray(versions, dtype=np.int32),
        ]
        reply = self._read(ids, start)
        self._past.append((observation, reply.action))
        return reply

    def sequences(self) -> tuple[TokenSequence, ...]:
        """Return all sequences so far. Tokens that were not sampled have log-prob NaN and version -1."""
        columns = zip(self._ids, self._logprobs, self._versions, strict=True)
        return tuple(TokenSequence(*map(np.concatenate, chunks)) for chunks in columns)

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
