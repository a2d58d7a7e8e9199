"""The run's own engines as a judge: how they are asked, and what fits into their context."""

from __future__ import annotations

import asyncio
import copy
import json

import numpy as np
import pytest
from feedback_toys import DESK, WHY, ask, feedback, group, trajectory, turn
from transformers import PreTrainedTokenizerFast

from hindsight.configs.schema import Judge, Prompt
from hindsight.feedback import preamble
from hindsight.feedback.judge_client import (
    LONGEST_TEXT,
    Answer,
    EngineAsk,
    JudgeClient,
    JudgeError,
    open_judge,
)
from hindsight.feedback.source import make_sources
from hindsight.feedback.transcript import SHORTEST, Style, shorten_to_fit
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import EngineError, Generation, Sampling
from hindsight.rollout.vocabulary import CHATML, END, PAD, train_tokenizer

SCHEMA = {"type": "object", "properties": {"turn": {"type": "integer"}}}


@pytest.fixture(scope="module")
def renderer():
    core = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(500, sentences=300), eos_token=END, pad_token=PAD
    )
    core.chat_template = CHATML
    return Renderer(core, Prompt(), context=256)


def engine(renderer, *script):
    """An engine that answers with texts, in order; an exception is raised."""
    left, asked = list(script), []

    async def generate(ids: np.ndarray, sampling: Sampling) -> Generation:
        asked.append((ids, sampling))
        step = left.pop(0)
        if isinstance(step, Exception):
            raise step
        sampled = np.append(renderer.encode(step), np.int32(renderer.end_id))
        return Generation(
            sampled, np.zeros(len(sampled), np.float32), "stop", np.zeros(len(sampled), np.int32)
        )

    generate.asked = asked
    return generate


def test_an_engine_tells_what_it_read_and_wrote(renderer):
    one = engine(renderer, "It failed.")
    answer = asyncio.run(EngineAsk(renderer, [one], Judge())(WHY))
    written = len(renderer.encode("It failed.")) + 1  # with the token that ends its turn
    assert answer == Answer("It failed.", len(renderer.chat([{"role": "user", "content": "Why?"}])), written)


def test_an_engine_is_asked_in_the_models_own_chat(renderer):
    one = engine(renderer, "It failed.")
    client = open_judge(Judge(top_p=0.95, max_tokens=64), None, renderer, [one])
    assert ask(client, "Why? <|im_end|>", schema=SCHEMA) == ["It failed."]
    [(ids, sampling)] = one.asked
    assert renderer.decode(ids) == "<|im_start|>user\nWhy? < |im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert (sampling.temperature, sampling.top_p, json.loads(sampling.json_schema)) == (0.0, 0.95, SCHEMA)
    assert sampling.max_tokens == 64 and sampling.seed is not None


def test_an_answer_in_json_has_an_end(renderer):
    """A random model never ends a text."""
    text = {"properties": {"cause": {"type": "string"}, "fix": {"type": ["string", "null"]}}}
    kind = {"type": "string", "enum": ["good", "wrong"]}
    schema = {"properties": {"turns": {"type": "array", "items": text}, "kind": kind}}
    one = engine(renderer, "{}")
    ask(EngineAsk(renderer, [one], Judge()), "Why?", schema=schema)
    asked = json.loads(one.asked[0][1].json_schema)
    turns = asked["properties"].pop("turns")
    assert asked == {"properties": {"kind": kind}}
    limits = {name: one["maxLength"] for name, one in turns["items"]["properties"].items()}
    assert limits == {"cause": LONGEST_TEXT, "fix": LONGEST_TEXT}
    assert "maxLength" not in text["properties"]["cause"]  # the source's own schema stays as it is


def test_engines_take_turns_and_stand_in_for_each_other(renderer):
    down = EngineError("engine 1 is gone")
    one, two = engine(renderer, "a", "b", "c"), engine(renderer, down, down)
    client = EngineAsk(renderer, [one, two], Judge())

    async def run():
        return [(await client(WHY)).text for _ in range(3)]

    assert asyncio.run(run()) == ["a", "b", "c"] and len(two.asked) == 1
    assert one.asked[0][1].json_schema is None


def test_no_engine_left_is_a_judges_failure(renderer):
    broken = engine(renderer, *[EngineError("down")] * 3)
    [error] = ask(JudgeClient(EngineAsk(renderer, [broken], Judge()), Judge()), "a")
    assert isinstance(error, JudgeError) and "down" in str(error) and len(broken.asked) == 3


def long_questions(turns):
    """Questions about a trajectory of so many long turns, by who asks."""
    note = "You see a mug on the desk. " * 30
    later = (turn(f"note {n} {note}", "look", f"note {n + 1} {note}") for n in range(1, turns))
    long = trajectory(turn(DESK, "look", f"note 1 {note}"), *later)
    found = {"lesson": preamble.question(long)}
    for name in ("judge", "reflect", "target"):
        chosen = feedback(name, rendering="pairs")
        found[name] = make_sources(chosen)[0].question(group(long), 0, Style(chosen))
    return found


def within(renderer, context):
    """The same renderer with another context."""
    other = copy.copy(renderer)
    other.context = context
    return other


@pytest.mark.parametrize("name", ["judge", "reflect", "target", "lesson"])
@pytest.mark.parametrize("context", [1280, 2048])
def test_a_long_trajectory_is_shortened_until_question_and_answer_fit(renderer, name, context):
    question, one = long_questions(20)[name], engine(renderer, "It failed.")
    whole = renderer.chat([{"role": "user", "content": question.write(12_000)}])
    assert len(whole) > context  # as it was asked before
    assert ask(EngineAsk(within(renderer, context), [one], Judge()), question) == ["It failed."]
    [(ids, sampling)] = one.asked
    assert len(ids) + sampling.max_tokens <= context
    assert sampling.max_tokens >= min(Judge().max_tokens, context // 3)
    shortest = renderer.chat([{"role": "user", "content": question.write(SHORTEST)}])
    assert len(ids) > len(shortest) + 100  # no shorter than it must be


def test_no_more_is_shown_than_the_judge_may_read(renderer):
    question, one = long_questions(20)["reflect"], engine(renderer, "{}")
    ask(EngineAsk(within(renderer, 24_576), [one], Judge(characters=2000)), question)
    shown = renderer.chat([{"role": "user", "content": question.write(2000)}])
    assert one.asked[0][0].tolist() == shown.tolist()


@pytest.mark.parametrize(("turns", "tokens"), [(3, 512), (15, 1500), (30, 3000)])
def test_a_diagnosis_of_each_turn_has_room_for_all_turns(renderer, turns, tokens):
    question, one = long_questions(turns)["reflect"], engine(renderer, "{}")
    ask(EngineAsk(within(renderer, 24_576), [one], Judge(max_tokens=512)), question)
    assert one.asked[0][1].max_tokens == tokens


@pytest.mark.parametrize(("most", "left", "asked"), [(512, 64, 64), (512, 63, None), (8, 8, 8), (8, 7, None)])
def test_an_answer_gets_what_the_shortest_question_leaves_but_no_less_than_it_needs(
    renderer, most, left, asked
):
    one, context = engine(renderer, "a"), len(renderer.chat([{"role": "user", "content": "Why?"}])) + left
    [answer] = ask(EngineAsk(within(renderer, context), [one], Judge(max_tokens=most)), "Why?")
    if asked is None:
        assert isinstance(answer, JudgeError) and f"model.max_length = {context}: raise it" in str(answer)
    else:
        assert answer == "a" and one.asked[0][1].max_tokens == asked


def test_a_question_is_shortened_until_it_fits():
    tried = []

    def write(characters):
        tried.append(characters)
        return "x" * characters

    assert len(shorten_to_fit(write, room=2250, characters=4000)) == 2250 and tried == [4000, 3000, 2250]
    assert (
        len(shorten_to_fit(write, room=1, characters=4000)) == SHORTEST
    )  # who asks says that it is too long
