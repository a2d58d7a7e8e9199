"""The text of single tokens: joined, it is the response, whatever the tokens break apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rollout_toys import TEMPLATES, make_tokenizer

from hindsight.cluster.report.pieces import Pieces
from hindsight.configs.schema import Prompt
from hindsight.rollout.render import Renderer

RENDERER = Renderer(make_tokenizer(TEMPLATES["chatml"]), Prompt(), 512)
PIECES = Pieces(RENDERER.token_bytes)


@given(st.lists(st.integers(0, 419), min_size=1, max_size=30))
def test_pieces_join_to_what_the_tokenizer_decodes(ids):
    """Any tokens: special ones, merged ones and bytes, which break characters anywhere."""
    pieces = PIECES.split(np.array(ids))
    assert len(pieces) == len(ids)
    assert "".join(pieces) == PIECES.text(np.array(ids)) == RENDERER.decode(np.array(ids))


@given(st.text(min_size=1, max_size=20))
def test_characters_stay_whole(text):
    ids = RENDERER.encode(text)
    whole = RENDERER.decode(ids)
    if len(ids):
        pieces = PIECES.split(ids)
        assert "".join(pieces) == whole and sum(piece.count("\ufffd") for piece in pieces) == text.count(
            "\ufffd"
        )


def test_a_character_belongs_to_the_token_that_completes_it():
    asked = []
    pieces = Pieces(lambda token: asked.append(token) or "ä".encode()[token : token + 1])
    assert pieces.split(np.array([0, 1, 0, 1, 1])) == ["", "ä", "", "ä", "\ufffd"]
    assert pieces.split(np.array([0])) == ["\ufffd"] and asked == [0, 1]  # each id once


def test_byte_tokens_of_other_tokenizers_are_read():
    """Sentencepiece names them <0xE4>; each alone decodes to a replacement character."""
    names = {1: "<0xC3>", 2: "<0xA4>", 3: "\ufffd", 4: "▁a"}
    texts = {9: "a", 1: "a\ufffd", 2: "a\ufffd", 3: "a\ufffd", 4: "a a"}  # of the last id

    class Tokenizer:
        def convert_ids_to_tokens(self, token):
            return names[token]

    renderer = object.__new__(Renderer)
    renderer._tokenizer = Tokenizer()
    renderer._encode = lambda text: np.array([9])
    renderer.decode = lambda ids: texts[int(ids[-1])]
    assert [renderer.token_bytes(token) for token in names] == [b"\xc3", b"\xa4", "\ufffd".encode(), b" a"]
