"""Teacher contexts: the student's own tokens behind a prompt that holds hindsight.

student   context ... observation               close_ids  response
teacher   context ... observation  section  closing line  close_ids  response up to the end of its scored span
          `----- ids[:cut] -----'  `--------------------------- tail ----------------------------'

HINT-SD shows the hindsight in one more user message: instead of section and closing line, the ids that end
the user message and open another one, then the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hindsight.rollout.types import Group, Span, Turn

CLOSING_LINE = "Now solve the current task correctly."
ELLIPSIS = " … "
SMALLEST_SECTION = 16  # tokens; a section cut shorter than its title and a few words tells nothing

Encode = Callable[[str], np.ndarray]  # text inside a message -> (n,) int32


class ContextError(ValueError):
    """A turn's ids are not what the renderer in use makes."""


@dataclass(frozen=True)
class ContextLimits:
    """How long a teacher context may be. The teacher's limit is its own: never the student's."""

    section: int  # tokens of one hindsight section (feedback.max_tokens)
    context: int  # tokens of a whole request (TeacherScorer.ready()["context"])


@dataclass(frozen=True)
class ScoreRequest:
    """One span to score. The context is `sequence.ids[:cut]` followed by `tail`.

    Requests of one trajectory share prefixes: a scorer computes a sequence once and branches at each `cut`.
    """

    trajectory: int  # index in the group
    turn: int  # index in the trajectory
    sequence: int  # index in the trajectory's sequences
    cut: int  # tokens taken from the front of that sequence
    tail: np.ndarray  # (T,) int32: hindsight, end of the user message, the response up to the span's end
    span: Span  # positions in `tail` whose log-probs are wanted
    candidates: np.ndarray | None = None  # (len(span), k) int32, other tokens wanted at the same positions


def scored_span(turn: Turn, tokens: str) -> Span | None:
    """What the teacher scores of a turn, positions in its sequence.

    Args:
        tokens: "action", the executable action, None where none parsed (SERL); "response", all that the turn
            sampled (RLSD, arXiv 2604.03128).
    """
    return turn.action_span if tokens == "action" else Span(turn.start, turn.end)


def build_requests(
    group: Group,
    texts: Mapping[tuple[int, int], str],
    close_ids: np.ndarray,
    encode: Encode,
    limits: ContextLimits,
    opening: np.ndarray | None = None,
    tokens: str = "action",
) -> list[ScoreRequest]:
    """One request per turn that has a text, in the order of `texts`.

    A turn whose context cannot fit even with its section at `SMALLEST_SECTION` is left out and trains with
    weight 1: `len(texts) - len(requests)` turns.

    Args:
        texts: (trajectory, turn) -> text, by `feedback.hints.gather_hints`.
        close_ids: (c,) ids that end the user message and open the assistant's turn.
        encode: the renderer's encoding of text inside a message.
        opening: ids that end a user message and open another one (`Renderer.second_message`), for a text that
            is a message of its own; None puts it into the last one.
        tokens: see `scored_span`.

    Raises:
        ContextError: a context does not end with `close_ids`, or a turn with a text has no action span.
    """
    requests = []
    for (trajectory, number), text in texts.items():
        turn = group.trajectories[trajectory].turns[number]
        ids = group.trajectories[trajectory].sequences[turn.sequence].ids
        cut, scored = _locate(ids, turn, close_ids, tokens)
        behind = np.concatenate([close_ids, ids[turn.start : scored.end]])
        hint = hint_ids(text, encode, limits.section, limits.context - cut - len(behind), opening)
        if hint is None:
            continue
        tail = np.concatenate([hint, behind]).astype(np.int32)
        span = Span(len(tail) - len(scored), len(tail))
        requests.append(ScoreRequest(trajectory, number, turn.sequence, cut, tail, span))
    return requests


def plain_requests(group: Group) -> list[ScoreRequest]:
    """One request per turn for all that it sampled in the student's own context: for a reference policy."""
    requests = []
    for index, trajectory in enumerate(group.trajectories):
        for number, turn in enumerate(trajectory.turns):
            cut = turn.start - 1  # the token before the response is what predicts its first one
            tail = trajectory.sequences[turn.sequence].ids[cut : turn.end]
            requests.append(ScoreRequest(index, number, turn.sequence, cut, tail, Span(1, len(tail))))
    return requests


def hint_ids(
    text: str, encode: Encode, longest: int, room: int, opening: np.ndarray | None = None
) -> np.ndarray | None:
    """What goes behind the user's text: the section, shortened in its middle where it must be, and the
    closing line, which never is. With an `opening`: that, and the text as a message of its own.

    Args:
        longest: tokens the section may have.
        room: tokens that everything may have together.

    Returns:
        (n,) int32, or None where there is no room.
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
    """Exactly `length` tokens: the front, an ellipsis, the end. The title is in the front."""
    kept = length - len(ellipsis)
    back = kept // 2
    return np.concatenate([section[: kept - back], ellipsis, section[len(section) - back :]])


def _locate(ids: np.ndarray, turn: Turn, close_ids: np.ndarray, tokens: str) -> tuple[int, Span]:
    """Where the user message ends, and the span to score."""
    cut = turn.start - len(close_ids)
    if cut < 0 or not np.array_equal(ids[cut : turn.start], close_ids):
        raise ContextError(
            f"the context of the turn at position {turn.start} does not end with the ids that open an "
            "assistant's turn: pass the close_ids of the renderer that made the rollout"
        )
    span = scored_span(turn, tokens)
    if span is None:
        raise ContextError(f"the turn at position {turn.start} has a text but no action span to score")
    return cut, span
