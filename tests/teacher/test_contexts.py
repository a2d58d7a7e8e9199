"""The teacher's contexts: the student's ids, the hint before the assistant's turn, the limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_toys import make_group, make_renderer

from hindsight.configs.schema import Feedback
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.reflect import Reflect
from hindsight.feedback.sources import IMMEDIATE_TITLE
from hindsight.feedback.target import Target
from hindsight.feedback.transcript import Style
from hindsight.teacher.contexts import (
    CLOSING_LINE,
    ContextError,
    ContextLimits,
    build_requests,
    hint_ids,
    plain_requests,
)

GOLDEN = Path(__file__).parent / "golden"
WIDE = ContextLimits(section=512, context=4096)


def requests_of(preset, limits=WIDE, texts=None, message=False, tokens="action"):
    renderer = make_renderer(preset)
    group = make_group(renderer)
    if texts is None:
        texts = asyncio.run(gather_hints(group, Feedback(sources=["immediate"]))).texts
    opening = renderer.second_message() if message else None
    requests = build_requests(group, texts, renderer.close_ids, renderer.encode, limits, opening, tokens)
    return renderer, group, requests


def ids_of(group, request):
    sequence = group.trajectories[request.trajectory].sequences[request.sequence].ids
    return np.concatenate([sequence[: request.cut], request.tail])


def shown(renderer, group, request):
    ids, start = ids_of(group, request), request.cut + request.span.start
    return renderer.decode(ids[:start]) + "⟦" + renderer.decode(ids[start:]) + "⟧\n"


def golden(name):
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("tokens", "name"), [("action", "serl_immediate"), ("response", "rlsd_immediate")])
def test_prompt_reads_as_the_golden_file(tokens, name):
    renderer, group, requests = requests_of("history", tokens=tokens)
    request = next(request for request in requests if request.turn == 3)
    assert shown(renderer, group, request) == golden(name)


def read(kind, answer, renderer):
    """The texts that a judged source of the given kind reads for the first episode."""
    source = kind(kind.Settings())
    trajectory = make_group(renderer).trajectories[0]
    return source.read(answer, trajectory, Style(source.settings, renderer.show)).texts


def diagnosed(renderer):
    """HERO's text for turn 2 of the first episode."""
    answer = '{"turn": 3, "verdict": "invalid", "cause": "No mug is in sight.", "fix": "open fridge 1"}'
    return read(Reflect, answer, renderer)


def corrected(renderer):
    """HINT-SD's text for turn 2 of the first episode."""
    answer = '{"failures": [{"turn": 3, "correction": "Open the fridge before you take the mug."}]}'
    return read(Target, answer, renderer)


@pytest.mark.parametrize(
    ("name", "write", "message"), [("hero", diagnosed, False), ("hint_sd", corrected, True)]
)
def test_methods_prompts_read_as_their_golden_files(name, write, message):
    texts = {(0, number): text for number, text in write(make_renderer()).items()}
    renderer, group, [request] = requests_of("history", texts=texts, message=message)
    assert shown(renderer, group, request) == golden(name)


def test_a_message_of_its_own_is_a_message_and_keeps_its_limits():
    text = "first words " + "and so on " * 200 + "last words"
    renderer, _, (whole,) = requests_of("history", replace(WIDE, section=4000), {(0, 2): text}, True)
    behind = text + "<|im_end|>\n<|im_start|>assistant\n<action>take mug 1"
    assert renderer.decode(whole.tail) == "<|im_end|>\n<|im_start|>user\n" + behind
    _, _, (short,) = requests_of("history", replace(WIDE, section=60), {(0, 2): text}, True)
    opening, response = len(renderer.second_message()), len(whole.tail) - len(renderer.encode(text))
    assert len(short.tail) == 60 + response and response > opening
    kept = renderer.decode(short.tail)
    assert kept.startswith("<|im_end|>\n<|im_start|>user\nfirst words") and " … " in kept


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


@pytest.mark.parametrize("preset", ["history", "window"])
def test_a_whole_response_is_scored_behind_the_same_prompt(preset):
    _, group, actions = requests_of(preset)
    _, _, responses = requests_of(preset, tokens="response")
    for action, response in zip(actions, responses, strict=True):
        turn = group.trajectories[action.trajectory].turns[action.turn]
        sampled = group.trajectories[action.trajectory].sequences[turn.sequence].ids[turn.start : turn.end]
        assert np.array_equal(response.tail[response.span.start : response.span.end], sampled)
        assert response.cut == action.cut and response.span.end == len(response.tail)
        assert np.array_equal(response.tail[: len(action.tail)], action.tail)


def test_a_turn_without_an_action_has_a_response_to_score():
    _, _, (request,) = requests_of("history", texts={(0, 1): "text"}, tokens="response")
    assert len(request.span) > 0


@pytest.mark.parametrize("preset", ["history", "window"])
def test_a_reference_sees_what_the_student_saw(preset):
    group = make_group(make_renderer(preset))
    requests = plain_requests(group, range(len(group.trajectories)))
    assert len(requests) == sum(len(trajectory.turns) for trajectory in group.trajectories)
    for request in requests:
        trajectory = group.trajectories[request.trajectory]
        turn = trajectory.turns[request.turn]
        seen = ids_of(group, request)
        assert np.array_equal(seen, trajectory.sequences[turn.sequence].ids[: turn.end])
        assert request.cut + request.span.start == turn.start and len(request.span) == turn.end - turn.start


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
        _, _, found = requests_of("history", ContextLimits(512, context), texts)
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
