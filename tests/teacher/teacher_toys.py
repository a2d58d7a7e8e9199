"""A small chat tokenizer, scripted rollouts and random models for the teacher's tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hindsight.configs.schema import Prompt
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Group, Trajectory, Turn
from hindsight.rollout.vocabulary import CHATML, END, PAD, train_tokenizer

TASK = TaskSpec("t", "toy", "clean", "train")
ACTIONS = ("go to fridge 1", "open fridge 1", "look")
START = Observation(
    "You are in the middle of a room. You see a fridge 1.\n\nYour task is to: find a mug.",
    ACTIONS,
    rules="You act in a text world to finish a task, one action per turn.",
)
EPISODES = (  # (response, feedback) per turn; the second response does not parse
    (
        ("<action>go to fridge 1</action>", "You arrive at fridge 1. The fridge 1 is closed."),
        ("I open it.", "Your reply contained no action of the form <action>…</action>."),
        ("<action>take mug 1</action>", "Nothing happens."),
        ("<action>open fridge 1</action>", "You open the fridge 1. In it, you see a mug 1."),
    ),
    (
        ("<action>look</action>", "You are facing the fridge 1."),
        ("<action>go to fridge 1</action>", "You arrive at fridge 1."),
    ),
)


@cache
def make_renderer(preset: str = "history", context: int = 1024, think: bool = False) -> Renderer:
    core = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), eos_token=END, pad_token=PAD)
    core.chat_template = CHATML
    return Renderer(core, Prompt(preset=preset, think=think), context)


@cache
def make_tokenizer():
    return train_tokenizer(500, sentences=300)


def play(renderer: Renderer, episode) -> Trajectory:
    """A trajectory with the given responses and feedbacks; the next observation is the feedback."""
    conversation, observation, turns = Conversation(renderer), START, []
    for response, feedback in episode:
        conversation.prompt(observation)
        ids = np.append(renderer.encode(response), np.int32(renderer.end_id))
        reply = conversation.append_sampled(ids, np.zeros(len(ids), dtype=np.float32))
        result = StepResult(Observation(feedback, ACTIONS), feedback, 0.0, False, False, False)
        turns.append(
            Turn(
                reply.sequence,
                reply.start,
                reply.end,
                reply.action_span,
                observation,
                reply.text,
                reply.action,
                reply.action in ACTIONS,
                result,
            )
        )
        observation = result.observation
    return Trajectory(TASK, conversation.sequences(), tuple(turns), False, 0.0, "truncated")


def make_group(renderer: Renderer) -> Group:
    return Group(0, TASK, tuple(play(renderer, episode) for episode in EPISODES))


def make_model(seed: int = 0, **overrides) -> LlamaForCausalLM:
    """A random float32 Llama with sharp attention and logits, so that a wrong context shows."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(shape | overrides)))
