from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rollout_toys import CHATML, make_tokenizer

from hindsight.configs.schema import Prompt
from hindsight.rollout.action_format import find_action
from hindsight.rollout.render import Renderer
from hindsight.rollout.spans import token_span
from hindsight.rollout.types import Span

TOKENIZER = make_tokenizer(CHATML)
RENDERER = Renderer(TOKENIZER, Prompt(), 512)


def ids_of(text: str) -> np.ndarray:
    return np.asarray(TOKENIZER(text, add_special_tokens=False).input_ids, dtype=np.int32)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<action>look</action>", "look"),
        (
            "<think>or <action>wait</action>?</think><action>\n go to cabinet 1 </action> done",
            "go to cabinet 1",
        ),
        ("<think>a</think><think>b</think><action>look</action>", "look"),
        ("<action>a < b</action>", "a < b"),
        ("", None),
        ("look", None),
        ("<action></action>", None),
        ("<action> \n</action>", None),
        ("<action>look", None),
        ("look</action>", None),
        ("</action>look<action>", None),
        ("<action>look</action><action>wait</action>", None),
        ("<action><action>look</action>", None),
        ("<action>look</action></action>", None),
        ("<action>look</action></think>", None),
        ("<Action>look</Action>", None),
    ],
)
def test_exactly_one_action_between_tags(text, action):
    span = find_action(text)
    assert (text[span.start : span.end] if span else None) == action


def test_span_of_a_known_tokenization():
    ids = np.concatenate([ids_of("<action>"), ids_of("look"), ids_of("</action>")])
    text = RENDERER.decode(ids)
    span = token_span(ids, find_action(text), RENDERER.decode)
    assert span == Span(len(ids_of("<action>")), len(ids_of("<action>")) + len(ids_of("look")))


def test_tokens_over_an_edge_belong_to_the_span():
    pieces = ["<act", "ion>go", " to</", "action>"]
    decode = lambda ids: "".join(pieces[i] for i in ids)  # noqa: E731
    ids = np.arange(4, dtype=np.int32)
    assert token_span(ids, find_action("".join(pieces)), decode) == Span(1, 3)


def test_a_token_that_holds_only_the_first_bytes_of_a_character_belongs_to_the_span():
    pieces = [b"<action", b">\xe2", b"\x82", b"\xac<", b"/action>"]
    decode = lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")  # noqa: E731
    ids = np.arange(5, dtype=np.int32)
    assert token_span(ids, find_action(decode(ids)), decode) == Span(1, 4)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=300, deadline=None)
@given(
    before=st.text(max_size=12),
    action=st.text(min_size=1, max_size=20).filter(lambda text: text.strip() and "action>" not in text),
    after=st.text(max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
@example(before="", action="\ufffd", after="", cuts=[])
@example(before="", action="a\ufffd", after="\ufffd", cuts=[9, 10])
def test_span_is_the_naive_byte_overlap(before, action, after, cuts):
    """Any tokenization of a text, canonical or not: compare with bytes counted token by token."""
    ids = np.concatenate(
        [ids_of(piece) for piece in pieces_of(f"{before}<action>{action}</action>{after}", cuts) if piece]
    )
    text = RENDERER.decode(ids)
    chars = find_action(text)
    assume(chars is not None)  # `before` or `after` may complete another tag
    span = token_span(ids, chars, RENDERER.decode)
    wanted = text[chars.start : chars.end]
    assert wanted in RENDERER.decode(ids[span.start : span.end])

    to_byte = {char: byte for byte, char in zip(range(256), byte_alphabet(), strict=True)}
    lengths = []
    for token in TOKENIZER.convert_ids_to_tokens(ids.tolist()):
        special = token in TOKENIZER.all_special_tokens
        lengths.append(len(token.encode()) if special else sum(1 for char in token if char in to_byte))
    ends = np.cumsum(lengths)
    first, last = len(text[: chars.start].encode()), len(text[: chars.end].encode())
    naive = [i for i, end in enumerate(ends) if end > first and end - lengths[i] < last]
    assert (span.start, span.end) == (naive[0], naive[-1] + 1)
    if ends[span.start] - lengths[span.start] == first and ends[span.end - 1] == last:
        assert RENDERER.decode(ids[span.start : span.end]) == wanted


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12))
def test_random_tokens_around_an_action(noise):
    """Garbage bytes and special tokens before and inside: the span still holds the whole action."""
    ids = np.concatenate(
        [
            np.asarray(noise, np.int32),
            ids_of("<action>take"),
            np.asarray(noise[:3], np.int32),
            ids_of("</action>"),
        ]
    )
    chars = find_action(text := RENDERER.decode(ids))
    assume(chars is not None)
    span = token_span(ids, chars, RENDERER.decode)
    assert 0 <= span.start < span.end <= len(ids)
    assert text[chars.start : chars.end] in RENDERER.decode(ids[span.start : span.end])
