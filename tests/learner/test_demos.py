"""Demonstrations become samples: what is learned, what is only seen, what is hinted."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from hindsight.configs.schema import Prompt
from hindsight.envs.base import Demonstration, DemoStep, Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.sources import immediate_section
from hindsight.learner.demos import demonstration_samples
from hindsight.rollout.render import Renderer
from hindsight.rollout.vocabulary import CHATML, END, PAD, train_tokenizer
from hindsight.teacher.contexts import CLOSING_LINE

TASK = TaskSpec("t", "toy", "find", "train")
ACTIONS = ("look", "go to fridge 1", "open fridge 1", "take mug 1 from fridge 1")
STEPS = (  # action, what the expert wanted, feedback
    ("go to fridge 1", "go to fridge 1", "You arrive at fridge 1."),
    ("look", "open fridge 1", "You are facing the fridge 1."),
    ("open fridge 1", "open fridge 1", "You open the fridge 1."),
    ("take mug 1 from fridge 1", "take mug 1 from fridge 1", ""),
)


@pytest.fixture(scope="module")
def tokenizer():
    made = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(500, sentences=300), eos_token=END, pad_token=PAD
    )
    made.chat_template = CHATML
    return made


@pytest.fixture(params=["history", "window"])
def renderer(request, tokenizer):
    return Renderer(tokenizer, Prompt(preset=request.param, think=False), 2048)


def make_demo(steps=STEPS):
    observation, made = Observation("A room. Your task is to: find a mug.", ACTIONS), []
    for action, expert, feedback in steps:
        after = Observation(feedback or "Done.", ACTIONS)
        result = StepResult(after, feedback, 0.0, False, False, False)
        made.append(DemoStep(observation, action, expert, result))
        observation = after
    return Demonstration(TASK, made[0].observation, tuple(made), True)


def learned(renderer, sample):
    """The texts that bear loss, one for each run of positions."""
    runs = np.split(sample.positions, np.flatnonzero(np.diff(sample.positions) != 1) + 1)
    return [renderer.decode(sample.ids[run]) for run in runs]


def said(action):
    return f"<action>{action}</action>{END}"


def test_expert_is_learned_and_noise_is_only_seen(renderer):
    samples = demonstration_samples(make_demo(), renderer, hints=0.0, seed=0)
    experts = [said(action) for action, expert, _ in STEPS if action == expert]
    assert [text for sample in samples for text in learned(renderer, sample)] == experts
    assert len(samples) == (1 if renderer.prompt.preset == "history" else 3)
    # The turn behind the noise was shown it.
    noisy = samples[0] if renderer.prompt.preset == "history" else samples[1]
    assert "look" in renderer.decode(noisy.ids).replace("Actions: look", "")


def test_samples_are_fit_for_the_learner(renderer):
    for sample in demonstration_samples(make_demo(), renderer, hints=1.0, seed=0):
        assert sample.ids.dtype == sample.positions.dtype == np.int32
        assert sample.positions.min() > 0 and sample.positions.max() < len(sample.ids)
        assert np.all(np.diff(sample.positions) > 0)
        assert np.array_equal(sample.advantages, np.ones(len(sample.positions), dtype=np.float32))
        assert sample.rollout_logprobs is None and sample.teacher_logprobs is None


@pytest.mark.parametrize(("hints", "expected"), [(0.25, ["noise"]), (0.5, ["noise", "expert"]), (1.0, None)])
def test_hints_use_noise_first_and_reach_their_share(renderer, hints, expected):
    plain = demonstration_samples(make_demo(), renderer, hints=0.0, seed=0)
    samples = demonstration_samples(make_demo(), renderer, hints=hints, seed=0)[len(plain) :]
    kinds = ["noise" if "You are facing" in hint_of(renderer, sample) else "expert" for sample in samples]
    # The last turn has no feedback, so not more than three can be hinted.
    assert kinds == (expected or ["noise", "expert", "expert"])


def test_a_small_share_of_hints_holds_on_average(renderer):
    plain = len(demonstration_samples(make_demo(), renderer, hints=0.0, seed=0))
    samples = [demonstration_samples(make_demo(), renderer, hints=0.1, seed=seed) for seed in range(200)]
    counts = [len(own) - plain for own in samples]
    assert set(counts) == {0, 1} and 60 <= sum(counts) <= 100  # of four turns each: 80


def hint_of(renderer, sample):
    """The hint of a hint sample: from the last title to the closing line before the response."""
    front = renderer.decode(sample.ids[: sample.positions[0]])
    return front[front.rindex("Feedback on the action") : front.rindex(CLOSING_LINE)]


def test_hint_sample_shows_the_feedback_and_asks_for_the_experts_action(renderer):
    sample = demonstration_samples(make_demo(), renderer, hints=0.25, seed=0)[-1]
    front = renderer.decode(sample.ids[: sample.positions[0]])
    assert learned(renderer, sample) == [said("open fridge 1")]
    section = immediate_section("You are facing the fridge 1.")
    assert front.endswith(f"\n\n{section}\n\n{CLOSING_LINE}" + renderer.decode(renderer.close_ids))
    assert sample.positions[-1] == len(sample.ids) - 1


def test_seed_decides_which_turns_are_hinted(renderer):
    steps = [("look", "look", f"Feedback {number}.") for number in range(8)]

    def chosen(seed):
        samples = demonstration_samples(make_demo(steps), renderer, hints=0.5, seed=seed)[-4:]
        return [hint_of(renderer, sample) for sample in samples]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(5)}) > 1


def test_turns_beyond_the_context_are_left_out(tokenizer):
    wide = Renderer(tokenizer, Prompt(preset="history", think=False), 2048)
    (whole,) = demonstration_samples(make_demo(), wide, hints=0.0, seed=0)
    narrow = Renderer(tokenizer, Prompt(preset="history", think=False), len(whole.ids) - 1)
    samples = demonstration_samples(make_demo(), narrow, hints=1.0, seed=0)
    assert learned(narrow, samples[0]) == learned(wide, whole)[:-1]
    assert all(len(sample.ids) <= narrow.context for sample in samples)
