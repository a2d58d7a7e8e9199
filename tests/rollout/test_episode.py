from __future__ import annotations

import asyncio

import numpy as np
import pytest
from rollout_toys import CHATML, ROOM, TASK, ToyEngine, ToySlot, make_tokenizer

from hindsight.configs.schema import Prompt
from hindsight.envs.base import Verdict
from hindsight.rollout.action_format import FORMS
from hindsight.rollout.episode import (
    SMALLEST_RESPONSE,
    EpisodeLimits,
    PromptTooLong,
    derive_seed,
    run_episode,
)
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import EngineError, Generation

TOKENIZER = make_tokenizer(CHATML)
WIN = ["<think>a</think><action>take key</action>", "<think>b</think><action>open door</action>"]


def run(texts, *, prompt=None, context=2048, max_turns=10, max_tokens=64, slot=None):
    engine = ToyEngine(TOKENIZER, "<|im_end|>", texts)
    renderer = Renderer(TOKENIZER, prompt or Prompt(), context)
    slot = slot or ToySlot()
    played = run_episode(
        TASK, slot, engine._generate, renderer, EpisodeLimits(max_turns, max_tokens), 1.0, seed=7
    )
    return asyncio.run(played), engine, slot, renderer


def test_a_won_episode():
    trajectory, engine, slot, renderer = run(WIN)
    assert (trajectory.success, trajectory.reward, trajectory.ended) == (True, 1.0, "terminated")
    assert slot.actions == ["take key", "open door"] and len(trajectory.sequences) == 1
    assert [turn.valid for turn in trajectory.turns] == [True, True]
    sequence = trajectory.sequences[0]
    assert sequence.versions.dtype == np.int32
    np.testing.assert_array_equal(sequence.versions, np.where(np.isnan(sequence.logprobs), -1, 3))
    for turn, (context, sampling), text in zip(trajectory.turns, engine.asked, WIN, strict=True):
        assert np.array_equal(sequence.ids[: turn.start], context)
        assert turn.response == text and sampling.max_tokens == 64 and sampling.temperature == 1.0
        assert renderer.decode(sequence.ids[turn.action_span.start : turn.action_span.end]) == turn.action
    assert np.isnan(sequence.logprobs[: trajectory.turns[0].start]).all()
    assert engine.asked[0][1].seed != engine.asked[1][1].seed


def test_window_preset_has_a_sequence_per_turn():
    engine_texts = ["<action>take key</action>"]
    trajectory, engine, _, _ = run(engine_texts, prompt=Prompt(preset="window", think=False), max_turns=3)
    assert [turn.sequence for turn in trajectory.turns] == [0, 1, 2] and len(trajectory.sequences) == 3
    assert trajectory.ended == "truncated" and trajectory.turns[-1].result.truncated
    for turn, (context, _) in zip(trajectory.turns, engine.asked, strict=True):
        assert np.array_equal(trajectory.sequences[turn.sequence].ids[: turn.start], context)


def test_a_malformed_response_does_not_reach_the_environment():
    trajectory, engine, slot, renderer = run(["I look around.", *WIN])
    first, second, _ = trajectory.turns
    assert slot.actions == ["take key", "open door"] and trajectory.success
    assert (first.action, first.action_span, first.valid) == (None, None, False)
    assert first.result.feedback == first.result.observation.text == FORMS["tags"].correction
    assert first.result.observation.actions == first.observation.actions and first.result.reward == 0.0
    assert first.result.observation.state_key == first.observation.state_key
    assert second.observation == first.result.observation
    assert FORMS["tags"].correction in renderer.decode(engine.asked[1][0])


def test_an_inadmissible_action_is_the_environments_to_answer():
    trajectory, _, slot, _ = run(["<action>fly</action>", *WIN])
    assert slot.actions[0] == "fly" and trajectory.turns[0].result.feedback == "Nothing happens."
    assert trajectory.turns[0].action_span is not None and not trajectory.turns[0].valid


@pytest.mark.parametrize("text", ["<action>look</action>", "no action"])
def test_the_turn_limit_truncates(text):
    trajectory, _, _, _ = run([text], max_turns=3)
    assert (len(trajectory.turns), trajectory.ended, trajectory.success) == (3, "truncated", False)
    assert [turn.result.truncated for turn in trajectory.turns] == [False, False, True]


@pytest.mark.parametrize("text", ["<action>look</action>", "no action"])
@pytest.mark.parametrize("limits", [{"max_turns": 3}, {"context": 420, "max_turns": 50}])
def test_an_episode_that_is_cut_is_judged_as_it_stands(text, limits):
    slot = ToySlot(verdict=Verdict(0.75, True, {"passes": ["the door"]}))
    trajectory, _, _, _ = run([text], slot=slot, **limits)
    last = trajectory.turns[-1].result
    assert (trajectory.success, trajectory.reward) == (last.success, last.reward) == (True, 0.75)
    assert last.truncated and last.info == {"passes": ["the door"]}
    assert not any(turn.result.success for turn in trajectory.turns[:-1])


def test_winning_on_the_last_turn_is_no_truncation():
    trajectory, _, _, _ = run(WIN, max_turns=2)
    assert trajectory.ended == "terminated" and not trajectory.turns[-1].result.truncated


def test_the_context_limit_ends_the_episode_and_cuts_the_last_response():
    trajectory, engine, _, _ = run(["<action>look</action>"], context=420, max_turns=50)
    assert trajectory.ended == "context" and not trajectory.success
    assert len(trajectory.sequences[0].ids) == trajectory.turns[-1].end <= 420
    rooms = [420 - len(context) for context, _ in engine.asked]
    assert [sampling.max_tokens for _, sampling in engine.asked] == [min(64, room) for room in rooms]
    assert min(rooms) >= SMALLEST_RESPONSE and min(rooms) < 64


def test_a_first_prompt_over_the_limit_is_a_configuration_error():
    with pytest.raises(PromptTooLong, match=r"model\.max_length is 64"):
        run(WIN, context=64)


@pytest.mark.parametrize("preset", ["history", "window"])
def test_a_preamble_stands_before_the_task_and_not_in_the_observation(preset):
    engine = ToyEngine(TOKENIZER, "<|im_end|>", WIN)
    renderer = Renderer(TOKENIZER, Prompt(preset=preset), 2048)
    played = run_episode(
        TASK, ToySlot(), engine._generate, renderer, EpisodeLimits(2, 64), 1.0, 7, "Look twice."
    )
    trajectory = asyncio.run(played)
    assert trajectory.preamble == "Look twice." and trajectory.turns[0].observation == ROOM
    for context, _ in engine.asked:
        assert renderer.decode(context).count(f"Look twice.\n\n{ROOM.text}") == 1
    with pytest.raises(PromptTooLong, match=r"lower evaluate\.example_characters"):
        cramped = Renderer(TOKENIZER, Prompt(), 64)
        asyncio.run(
            run_episode(
                TASK, ToySlot(), engine._generate, cramped, EpisodeLimits(2, 64), 1.0, 7, "Look twice."
            )
        )


def test_an_empty_generation_is_an_engine_failure():
    async def nothing(ids, sampling):
        return Generation(np.empty(0, np.int32), np.empty(0, np.float32), "stop", np.empty(0, np.int32))

    with pytest.raises(EngineError, match="no token"):
        asyncio.run(
            run_episode(
                TASK, ToySlot(), nothing, Renderer(TOKENIZER, Prompt(), 512), EpisodeLimits(3, 64), 1.0, 0
            )
        )


def test_seeds_are_stable():
    assert derive_seed(0, 1, 2) == 1616845078
    assert len({derive_seed(0, ordinal, index) for ordinal in range(30) for index in range(30)}) == 900
    assert all(0 <= derive_seed(7, index) < 2**31 for index in range(100))
