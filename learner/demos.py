"""Demonstrations as imitation rows: what the warm start learns from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np

from hindsight.envs.base import Demonstration, DemoStep
from hindsight.feedback.sources import immediate_section
from hindsight.learner.rows import Row
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
        """Whether a random action was taken in place of the expert's."""
        return self.step.action != self.step.expert


def demonstration_rows(
    demo: Demonstration, renderer: Renderer, hints: float, seed: int, observations: float = 0.0
) -> list[Row]:
    """Rows of one demonstration, for either prompt preset.

    Imitation rows come first: loss on each response that is the expert's; an action taken by noise stays in
    the context without loss. What is not a response has a loss of weight `observations`: predicting what the
    environment answers teaches a model of random weights to copy names.

    Then hint rows, on average hints x turns of them where there is room: a turn's context with the feedback
    on its action as hindsight, and the expert's response as the target. They teach a small model to read what
    the teacher will be shown. Turns taken by noise are chosen first (their feedback is that of a wrong
    action), then the expert's own.

    Turns that are beyond the renderer's context are left out. The same arguments give the same rows.
    """
    conversation = Conversation(renderer)
    turns = list(_show(demo, renderer, conversation))
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for turn in turns:
        if not turn.noise:
            spans[turn.sequence].append((turn.start, turn.end))
    sequences = conversation.sequences()
    shown: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for turn in turns:
        shown[turn.sequence].append((turn.start, turn.end))
    rows = [
        _imitation_row(sequences[index].ids, found, observations, shown[index])
        for index, found in spans.items()
    ]
    hinted = (row for turn in _by_use(turns, seed) if (row := _hint_row(turn, renderer)) is not None)
    # Rounded by chance: of short demonstrations, a small share would otherwise be none.
    return rows + list(islice(hinted, int(hints * len(turns) + Random(seed).random())))


def _show(demo: Demonstration, renderer: Renderer, conversation: Conversation) -> Iterator[Shown]:
    """Play the demonstration into the conversation, up to the turn that has no room."""
    for step in demo.steps:
        _, context = conversation.prompt(step.observation)
        response = renderer.respond(step.action)
        if len(context) + len(response) > renderer.context:
            return
        reply = conversation.append_sampled(response)
        yield Shown(step, context, reply.sequence, reply.start, reply.end)


def _by_use(turns: list[Shown], seed: int) -> list[Shown]:
    """Turns with feedback in the order in which they become hint rows: noise first, each kind shuffled."""
    heard = [turn for turn in turns if turn.step.result.feedback.strip()]
    Random(seed).shuffle(heard)
    return sorted(heard, key=lambda turn: not turn.noise)


def _hint_row(turn: Shown, renderer: Renderer) -> Row | None:
    """The turn's context with hindsight, then the expert's response; None where there is no room."""
    response = renderer.respond(turn.step.expert)
    room = renderer.context - len(turn.context) - len(response)
    hint = hint_ids(immediate_section(turn.step.result.feedback), renderer.encode, longest=room, room=room)
    if hint is None:
        return None
    before = turn.context[: len(turn.context) - len(renderer.close_ids)]
    ids = np.concatenate([before, hint, renderer.close_ids, response]).astype(np.int32)
    return _imitation_row(ids, [(len(ids) - len(response), len(ids))])


def _imitation_row(
    ids: np.ndarray,
    spans: list[tuple[int, int]],
    observations: float = 0.0,
    responses: Sequence[tuple[int, int]] = (),
) -> Row:
    """A row with weight 1 on the half-open `spans` and `observations` on what is outside of `responses`."""
    weights = np.full(len(ids), observations, dtype=np.float32)
    weights[0] = 0.0  # nothing predicts the first token
    for start, end in responses:
        weights[start:end] = 0.0
    for start, end in spans:
        weights[start:end] = 1.0
    positions = np.flatnonzero(weights).astype(np.int32)
    unknown = np.full(len(positions), np.nan, dtype=np.float32)
    return Row(
        ids=ids,
        positions=positions,
        advantages=weights[positions],
        rollout_logprobs=unknown,
        teacher_logprobs=unknown,
    )
