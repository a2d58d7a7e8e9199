"""Demonstrations as training samples for the supervised warm start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from hindsight.envs.base import Demonstration, DemoStep
from hindsight.feedback.sources import immediate_section
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.render import Renderer
from hindsight.teacher.contexts import hint_ids


@dataclass(frozen=True)
class Shown:
    """One demonstrated turn, rendered."""

    step: DemoStep
    context: np.ndarray  # (n,) int32, ends with the renderer's close_ids
    sequence: int  # index into the conversation's sequences
    start: int  # positions of the taken action's response in that sequence
    end: int

    @property
    def noise(self) -> bool:
        """Whether a random action replaced the expert's."""
        return self.step.action != self.step.expert


def demonstration_samples(
    demo: Demonstration, renderer: Renderer, hints: float, seed: int
) -> list[TrainingSample]:
    """SFT samples of one demonstration, for either prompt preset. The same arguments give the same samples.

    First one sample per sequence, with a loss on each response of the expert; an action taken by noise stays
    in the context without a loss.

    Then hint examples, on average hints x turns of them if they fit: the context of a turn with the feedback
    on its action as a hint, and the expert's response as the target. They teach a small model to read what
    the teacher will be shown. Turns taken by noise are chosen first, since their feedback is on a wrong
    action, then the expert's own.

    Turns beyond the renderer's context are left out.
    """
    conversation = Conversation(renderer)
    turns = list(_show(demo, renderer, conversation))
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for turn in turns:
        if not turn.noise:
            spans[turn.sequence].append((turn.start, turn.end))
    sequences = conversation.sequences()
    samples = [_sft_sample(sequences[index].ids, found) for index, found in spans.items()]
    examples = (one for turn in _by_use(turns, seed) if (one := _hint_sample(turn, renderer)) is not None)
    # Rounded at random: a small fraction of short demonstrations would otherwise always be 0.
    return samples + list(islice(examples, int(hints * len(turns) + Random(seed).random())))


def _show(demo: Demonstration, renderer: Renderer, conversation: Conversation) -> Iterator[Shown]:
    """Render the demonstration's turns, up to the first that does not fit."""
    for step in demo.steps:
        _, context = conversation.prompt(step.observation)
        response = renderer.respond(step.action)
        if len(context) + len(response) > renderer.context:
            return
        reply = conversation.append_sampled(response)
        yield Shown(step, context, reply.sequence, reply.start, reply.end)


def _by_use(turns: list[Shown], seed: int) -> list[Shown]:
    """Turns with feedback, in the order in which they become hint examples: noise first, shuffled."""
    heard = [turn for turn in turns if turn.step.result.feedback.strip()]
    Random(seed).shuffle(heard)
    return sorted(heard, key=lambda turn: not turn.noise)


def _hint_sample(turn: Shown, renderer: Renderer) -> TrainingSample | None:
    """The turn's context with a hint, then the expert's response; None if it does not fit."""
    response = renderer.respond(turn.step.expert)
    room = renderer.context - len(turn.context) - len(response)
    hint = hint_ids(immediate_section(turn.step.result.feedback), renderer.encode, longest=room, room=room)
    if hint is None:
        return None
    before = turn.context[: len(turn.context) - len(renderer.close_ids)]
    ids = np.concatenate([before, hint, renderer.close_ids, response]).astype(np.int32)
    return _sft_sample(ids, [(len(ids) - len(response), len(ids))])


def _sft_sample(ids: np.ndarray, spans: list[tuple[int, int]]) -> TrainingSample:
    """A sample with weight 1 on the half-open `spans`."""
    positions = np.concatenate([np.arange(start, end, dtype=np.int32) for start, end in spans])
    return TrainingSample(ids, positions, advantages=np.ones(len(positions), np.float32))
