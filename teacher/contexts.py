"""Teacher contexts: the student's own tokens after a prompt that includes hindsight.

student   context ... observation               close_ids  response
teacher   context ... observation  section  closing line  close_ids  response up to the end of its scored span
          `----- ids[:cut] -----'  `--------------------------- tail ----------------------------'

HINT-SD puts the hint in another user message. The section and closing line are replaced by the ids between
two user messages, followed by the hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hindsight.configs.method import ScoredTokens
from hindsight.rollout.types import Group, Span, Turn

CLOSING_LINE = "Now solve the current task correctly."
ELLIPSIS = " … "
SMALLEST_SECTION = 16  # tokens; a shorter section has room for little more than its title

Encode = Callable[[str], np.ndarray]  # text inside a message -> (n,) int32


class ContextError(ValueError):
    """A turn's ids do not match the current renderer."""


@dataclass(frozen=True)
class ContextLimits:
    """Length limits of a teacher context. They are independent of the student's limit."""

    section: int  # tokens of a hint's section (feedback.max_tokens)
    context: int  # tokens of a full request (TeacherScorer.ready()["context"])


@dataclass(frozen=True)
class ScoreRequest:
    """One span to score. The context is `sequence.ids[:cut]` followed by `tail`.

    Requests of one sequence share prefixes: a scorer computes the sequence once and branches at each `cut`.
    """

    trajectory: int  # index in the group
    turn: int  # index in the trajectory
    sequence: int  # index in the trajectory's sequences
    cut: int  # tokens taken from the front of that sequence
    tail: np.ndarray  # (T,) int32: the hint, end of the user message, the response up to the span's end
    span: Span  # positions in `tail` to score
    candidates: np.ndarray | None = None  # (len(span), k) int32, other tokens to score at those positions
    hint: int = 0  # tokens of `tail` that are the hint


def scored_span(turn: Turn, tokens: ScoredTokens) -> Span | None:
    """Return the positions in the sequence that the teacher scores.

    Args:
        tokens: "action" for the executable action, None if the turn is malformed (SERL); "response" for all
            sampled tokens (RLSD, arXiv 2604.03128).
    """
    return turn.action_span if tokens == "action" else Span(turn.start, turn.end)


def build_requests(
    group: Group,
    texts: Mapping[tuple[int, int], str],
    close_ids: np.ndarray,
    encode: Encode,
    limits: ContextLimits,
    opening: np.ndarray | None = None,
    tokens: ScoredTokens = "action",
) -> list[ScoreRequest]:
    """Build one request per turn that has a hint, in the order of `texts`.

    A turn is skipped if its context does not fit even with a section of `SMALLEST_SECTION` tokens. It then
    trains with weight 1. The number of skipped turns is `len(texts) - len(requests)`.

    Args:
        texts: (trajectory, turn) -> hint, from `feedback.hints.gather_hints`. With an empty one the teacher
            sees the student's own context.
        close_ids: (c,) ids that end the user message and open the assistant's turn.
        encode: the renderer's encoding of text inside a message.
        opening: ids between two user messages (`Renderer.second_message`), to put the hint in a separate
            message; None puts it in the last one.
        tokens: see `scored_span`.

    Raises:
        ContextError: a context does not end with `close_ids`, or a turn with a hint has no action span.
    """
    requests = []
    for (trajectory, number), text in texts.items():
        turn = group.trajectories[trajectory].turns[number]
        ids = group.trajectories[trajectory].sequences[turn.sequence].ids
        cut, scored = _locate(ids, turn, close_ids, tokens)
        behind = np.concatenate([close_ids, ids[turn.start : scored.end]])
        room = limits.context - cut - len(behind)
        hint = hint_ids(text, encode, limits.section, room, opening) if text else np.zeros(0, np.int32)
        if hint is None:
            continue
        tail = np.concatenate([hint, behind]).astype(np.int32)
        span = Span(len(tail) - len(scored), len(tail))
        requests.append(ScoreRequest(trajectory, number, turn.sequence, cut, tail, span, hint=len(hint)))
    return requests


def plain_requests(group: Group, about: Iterable[int]) -> list[ScoreRequest]:
    """Build one request per turn of these trajectories that scores its tokens in the student's own context
    (reference policy)."""
    requests = []
    for index in about:
        trajectory = group.trajectories[index]
        for number, turn in enumerate(trajectory.turns):
            cut = turn.start - 1  # the token before the response predicts its first token
            tail = trajectory.sequences[turn.sequence].ids[cut : turn.end]
            requests.append(ScoreRequest(index, number, turn.sequence, cut, tail, Span(1, len(tail))))
    return requests


def hint_ids(
    text: str, encode: Encode, longest: int, room: int, opening: np.ndarray | None = None
) -> np.ndarray | None:
    """Encode a hint as the tokens that follow the user's text.

    These are the section and the closing line or, with an `opening`, the opening and the hint. A section that
    is too long is cut in the middle; the closing line is never cut.

    Args:
        longest: maximum tokens of the section.
        room: maximum tokens of everything.

    Returns:
        (n,) int32, or None if the hint does not fit.
    """
    if opening is None:
        before, section, closing = encode(""), encode("\n\n" + text), encode("\n\n" + CLOSING_LINE)
    else:
        before, section, closing = opening, encode(text), encode("")
    allowed = min(longest, room - len(before) - len(closing))
    if len(section) > allowed:
        if allowed < min(longest, SMALLEST_SECTION):
            return None
        section = _shorten(section, allowed, encode(ELLIPSIS))
    return np.concatenate([before, section, closing]).astype(np.int32)


def _shorten(section: np.ndarray, length: int, ellipsis: np.ndarray) -> np.ndarray:
    """Cut the middle of a section to exactly `length` tokens. The title at the front stays."""
    kept = length - len(ellipsis)
    back = kept // 2
    return np.concatenate([section[: kept - back], ellipsis, section[len(section) - back :]])


def _locate(ids: np.ndarray, turn: Turn, close_ids: np.ndarray, tokens: ScoredTokens) -> tuple[int, Span]:
    """Return the position where the user message ends, and the span to score."""
    cut = turn.start - len(close_ids)
    if cut < 0 or not np.array_equal(ids[cut : turn.start], close_ids):
        raise ContextError(
            f"the context of the turn at position {turn.start} does not end with close_ids. "
            "Pass the close_ids of the renderer used for the rollout"
        )
    span = scored_span(turn, tokens)
    if span is None:
        raise ContextError(f"the turn at position {turn.start} has a hint but no action span to score")
    return cut, span
