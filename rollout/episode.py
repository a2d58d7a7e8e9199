"""Run one episode: pass observations to the model and its actions to the environment."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from hindsight.envs.base import Observation, StepResult, Verdict
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.conversation import Conversation, Reply
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Ended, EngineError, Generation, Sampling, Trajectory, Turn

SMALLEST_RESPONSE = 16  # tokens; a shorter response would almost always be cut off
Generate = Callable[[np.ndarray, Sampling], Awaitable[Generation]]


class PromptTooLong(ValueError):
    """The first prompt leaves no room for a response: the settings do not fit the task."""


class EpisodeSlot(Protocol):
    """The methods of a leased environment slot that an episode needs."""

    async def reset(self, task: TaskSpec) -> Observation:
        """As `TextEnv.reset`."""

    async def step(self, action: str) -> StepResult:
        """As `TextEnv.step`."""

    async def finish(self) -> Verdict | None:
        """As `TextEnv.finish`."""


@dataclass(frozen=True)
class EpisodeLimits:
    """Limits of one episode."""

    max_turns: int
    max_tokens: int  # per response


async def run_episode(
    task: TaskSpec,
    slot: EpisodeSlot,
    generate: Generate,
    renderer: Renderer,
    limits: EpisodeLimits,
    temperature: float,
    seed: int,
    preamble: str = "",
) -> Trajectory:
    """Run one episode of a task. `slot` and `generate` enforce their own deadlines.

    Args:
        preamble: text shown to the agent before the task.

    Raises:
        PromptTooLong: the first prompt does not fit the context.
        EnvError, EngineError: infrastructure failed; discard the episode, and retry it if needed.
    """
    conversation = Conversation(renderer, preamble)
    observation = await slot.reset(task)
    turns: list[Turn] = []
    reward = 0.0
    ended: Ended
    while True:
        _, context = conversation.prompt(observation)
        room = renderer.context - len(context)
        if not leaves_room(len(context), renderer.context, limits.max_tokens):
            if not turns:
                raise PromptTooLong(too_long(task, len(context), renderer.context, bool(preamble)))
            ended = "context"
            turns[-1] = replace(turns[-1], result=turns[-1].result.cut(await slot.finish()))
            break
        sampling = Sampling(temperature, min(limits.max_tokens, room), derive_seed(seed, len(turns)))
        generation = await generate(context, sampling)
        if len(generation.ids) == 0:
            raise EngineError("the engine returned no token")
        reply = conversation.append_sampled(generation.ids, generation.logprobs, generation.versions)
        if reply.action is None:
            result = _correct(observation, renderer.form.correction, reward)
        else:
            result = await slot.step(reply.action)
        # The environment also counts turns, but takes none for a malformed response.
        if len(turns) + 1 == limits.max_turns and not (result.terminated or result.truncated):
            result = result.cut(await slot.finish())
        turns.append(_turn(reply, observation, result))
        observation, reward = result.observation, result.reward
        if result.terminated or result.truncated:
            ended = "terminated" if result.terminated else "truncated"
            break
    last = turns[-1].result
    return Trajectory(
        task, conversation.sequences(), tuple(turns), last.success, last.reward, ended, preamble
    )


def leaves_room(tokens: int, context: int, max_tokens: int) -> bool:
    """Whether a prompt of `tokens` tokens leaves room for a response of up to `max_tokens`."""
    return context - tokens >= min(max_tokens, SMALLEST_RESPONSE)


def too_long(task: TaskSpec, tokens: int, context: int, example: bool = False) -> str:
    """Say that a task's first prompt leaves no room, and what to change.

    Args:
        example: whether the prompt has a preamble.
    """
    shorter = ", lower evaluate.example_characters" if example else ""
    return (
        f"the first prompt of task {task.id} has {tokens} tokens but model.max_length is {context}: raise "
        f"model.max_length{shorter}, or set prompt.list_actions=false"
    )


def derive_seed(*parts: int) -> int:
    """Derive a 31-bit seed from numbers. It is the same on all machines and in all processes."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _correct(observation: Observation, correction: str, reward: float) -> StepResult:
    """Return the result of a malformed response. The environment does not take a step."""
    return StepResult(
        observation=replace(observation, text=correction, role="user"),
        feedback=correction,
        reward=reward,
        terminated=False,
        truncated=False,
        success=False,
    )


def _turn(reply: Reply, observation: Observation, result: StepResult) -> Turn:
    return Turn(
        sequence=reply.sequence,
        start=reply.start,
        end=reply.end,
        action_span=reply.action_span,
        observation=observation,
        response=reply.text,
        action=reply.action,
        valid=reply.action is not None and observation.admits(reply.action),
        result=result,
    )
