"""Parsers of what a model or a server wrote: their time is linear, and they find what naive ones find."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.envs.searchqa import env as searchqa
from hindsight.envs.tool_calls import CLOSE, DEPTH, OPEN, MalformedCall, depth, read_calls
from hindsight.envs.webshop.pages import read_shop_action
from hindsight.feedback.reading import Unreadable, json_objects
from hindsight.feedback.reflect import diagnoses
from hindsight.rollout.action_format import FORMS, without_thought

LENGTH = 200_000  # characters of a hostile text
SECONDS = 6.0  # of process time; linear parsers need a fraction of one, quadratic ones 20 to 50


def calls(text):
    with suppress(MalformedCall):
        read_calls(text)


def diagnosed(text):
    with suppress(Unreadable):
        diagnoses(text, 3)


PARSERS = {
    "tags": FORMS["tags"].find,
    "tools": FORMS["tools"].find,
    "code": FORMS["code"].find,
    "search": FORMS["search"].find,
    "calls": calls,
    "objects": lambda text: list(json_objects(text)),
    "diagnoses": diagnosed,
    "thought": without_thought,
    "shop": read_shop_action,
    "question": searchqa.read_search_action,
}
HOSTILE = {
    "tags": ["<action>", "</action><action>"],
    "tools": [OPEN, CLOSE + OPEN],
    "search": ["<search>", "</search><search>", "<search>a</search>"],
    "question": ["<search>", "</search>", "<search>a</search>"],
    "code": ["```python\n", "```\n", "```py \t\n```x\n"],
    "calls": [OPEN, f'{OPEN}{{"a":', f"{OPEN}[[[[", f"{OPEN}[{CLOSE}"],
    "objects": [
        *("{", "{}", '{"', '{"a', '{"a":', '{"a":[', '{"a":[{},', '{"a":{"b":"', '{"\\"', '{"a":"\\'),
        *('{"a":nope}', '{"a":' * DEPTH + "nope" + "}" * DEPTH),
    ],
    "diagnoses": ['{"turns":[{"turn":1,'],
    "thought": ["<think></think>"],
    "shop": ["search[", "] ", " \t"],
}
AROUND = {"objects": ('{"turns":[{"a":"', "x"), "shop": ("search[", "] x")}


@pytest.mark.parametrize(
    ("parser", "piece"), [(parser, piece) for parser, pieces in HOSTILE.items() for piece in pieces]
)
def test_hostile_text_takes_linear_time(parser, piece):
    text = piece * (LENGTH // len(piece))
    before, behind = AROUND.get(parser, ("", ""))
    started = time.process_time()
    PARSERS[parser](text)
    PARSERS[parser](before + text + behind)
    assert time.process_time() - started < SECONDS


def test_deep_objects_are_read_down_to_a_depth_that_can_be_copied():
    [found] = json_objects('{"a":' * 100 + "1" + "}" * 100)
    assert depth(found) == DEPTH
    assert (
        list(json_objects('{"a":' * DEPTH + "1" + "}" * DEPTH + '{"b":' + "[" * 100 + "]" * 100 + "}"))[1:]
        == []
    )


def naive_objects(answer):
    """By Python's own parser, from every brace."""
    decoder, start = json.JSONDecoder(), answer.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(answer, start)
        except ValueError:
            end = start + 1
        else:
            yield found
        start = answer.find("{", end)


def naive_calls(answer):
    """The blocks of an answer; None if a tag is left over."""
    block = re.compile(re.escape(OPEN) + "(.*?)" + re.escape(CLOSE), re.DOTALL)
    rest = block.sub("", answer)
    return None if OPEN in rest or CLOSE in rest else block.findall(answer)


def naive_code(text):
    fence = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
    found = list(fence.finditer(text, text.rfind("</think>") + len("</think>") if "</think>" in text else 0))
    return found[0][1].strip() if len(found) == 1 else ""


def pieces(*parts):
    return st.lists(st.sampled_from(parts), max_size=16).map("".join)


SCRAPS = pieces(
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        '"',
        "\\",
        '"a"',
        '"a":',
        '{"a":',
        '{"b":1}',
        '"}',
        "1",
        "-",
        "0.5",
        "1e",
        "x",
    ),
    *("true", "null", "NaN", "-Infinity", " ", "\n", "\\u00e9", "\\n", '\\"', "é", "\x00", "[]", "{}"),
)


@settings(max_examples=300)
@given(SCRAPS)
def test_objects_are_those_of_pythons_parser(text):
    assert repr(list(json_objects(text))) == repr(list(naive_objects(text)))  # NaN is not equal to itself


@given(pieces("{", "}", '"', "\\", ":", "a"))
def test_objects_between_quotes_are_those_of_pythons_parser(text):
    assert list(json_objects(text)) == list(naive_objects(text))


@given(pieces(OPEN, CLOSE, OPEN[:5], OPEN[5:], '{"name": "a"}', '{"name": "b"}', "words", "\n"))
def test_calls_are_those_of_the_regular_expression(text):
    blocks = naive_calls(text)
    try:
        found = [json.dumps({"name": call.name}) for call in read_calls(text)]
    except MalformedCall:
        assert blocks is None or {block.strip() for block in blocks} - {'{"name": "a"}', '{"name": "b"}'}
    else:
        assert blocks is not None and found == [block.strip() for block in blocks]


@given(pieces("```", "```python", "```py", "\n", " ", "\t", "x", "`", "</think>"))
def test_code_is_that_of_the_regular_expression(text):
    span = FORMS["code"].find(text)
    assert (text[span.start : span.end] if span else "") == naive_code(text)
