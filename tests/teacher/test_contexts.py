"""The teacher's contexts: the student's ids, the hindsight before the assistant's turn, the limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_toys import make_group, make_renderer

from configs.schema import Feedback
from feedback.sources import IMMEDIATE_TITLE, hindsight
from teacher.contexts import CLOSING_LINE, ContextError, Limits, build_requests, hint_ids

GOLDEN = Path(__file__).parent / "golden" / "serl_immediate.txt"
WIDE = Limits(section=512, context=4096)


def requests_of(preset, limits=WIDE, texts=None):
    renderer = make_renderer(preset)
    group = make_group(renderer)
    texts = hindsight(group, Feedback()) if texts is None else texts
    return renderer, group, build_requests(group, texts, renderer.close_ids, renderer.encode, limits)


def ids_of(group, request):
    sequence = group.trajectories[request.trajectory].sequences[request.sequence].ids
    return np.concatenate([sequence[: request.cut], request.tail])


def test_prompt_reads_as_the_golden_file():
    renderer, group, requests = requests_of("history")
    request = next(request for request in requests if request.turn == 3)
    ids, start = ids_of(group, request), request.cut + request.span.start
    shown = renderer.decode(ids[:start]) + "⟦" + renderer.decode(ids[start:]) + "⟧\n"
    assert shown == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", ["history", "window"])
def test_context_is_the_students_with_hindsight_inserted(preset):
    renderer, group, requests = requests_of(preset)
    assert [(request.trajectory, request.turn) for request in requests] == [
        (0, 0),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
    ]
    for request in requests:
        turn = group.trajectories[request.trajectory].turns[request.turn]
        sequence = group.trajectories[request.trajectory].sequences[turn.sequence].ids
        ids = ids_of(group, request)
        assert np.array_equal(request.tail[request.span.start : request.span.end], sequence[slice_of(turn)])
        # The front up to the end of the user's text, and the back from there, are the student's own ids.
        back = turn.action_span.end - turn.start + len(renderer.close_ids)
        student = sequence[: turn.action_span.end]
        assert np.array_equal(ids[: request.cut], student[:-back])
        assert np.array_equal(ids[-back:], student[-back:])
        inserted = renderer.decode(ids[request.cut : -back])
        assert inserted == f"\n\n{IMMEDIATE_TITLE}\n{turn.result.feedback}\n\n{CLOSING_LINE}"


def slice_of(turn):
    return slice(turn.action_span.start, turn.action_span.end)


def test_other_renderers_ids_are_refused():
    renderer, group, _ = requests_of("history")
    with pytest.raises(ContextError, match="close_ids"):
        build_requests(group, {(0, 0): "text"}, renderer.close_ids[::-1].copy(), renderer.encode, WIDE)


def test_turn_without_action_is_refused():
    with pytest.raises(ContextError, match="no action span"):
        requests_of("history", texts={(0, 1): "text"})


def test_long_section_is_shortened_in_its_middle_only():
    long = f"{IMMEDIATE_TITLE}\nfirst words " + "and so on " * 200 + "last words"
    renderer, _, (short,) = requests_of("history", replace(WIDE, section=60), texts={(0, 0): long})
    _, _, (whole,) = requests_of("history", texts={(0, 0): "x"})
    closing = f"\n\n{CLOSING_LINE}"
    response = whole.tail[len(renderer.encode("\n\nx")) :]  # closing line, close_ids, response
    assert np.array_equal(short.tail[-len(response) :], response)
    assert len(short.tail) - len(response) == 60
    text = renderer.decode(short.tail)
    assert text.startswith(f"\n\n{IMMEDIATE_TITLE}\nfirst words")
    assert f"last words{closing}" in text
    assert " … " in text


def test_turn_is_left_out_only_where_its_context_cannot_fit():
    texts = {(0, 0): "some feedback " * 40}
    _, _, (request,) = requests_of("history", texts=texts)
    full = request.cut + len(request.tail)
    seen = set()
    for context in range(full + 1, request.cut, -1):
        _, _, found = requests_of("history", Limits(512, context), texts)
        assert all(item.cut + len(item.tail) == min(context, full) for item in found)
        seen.add(len(found))
    assert seen == {0, 1}


@settings(deadline=None)
@given(words=st.integers(0, 300), longest=st.integers(8, 200), room=st.integers(0, 300))
def test_hint_keeps_its_limits_and_its_closing_line(words, longest, room):
    encode = make_renderer().encode
    closing = encode("\n\n" + CLOSING_LINE)
    hint = hint_ids("a " * words + "z", encode, longest, room)
    if hint is None:
        assert room - len(closing) < 16
    else:
        assert len(hint) <= min(room, longest + len(closing))
        assert np.array_equal(hint[-len(closing) :], closing)
