"""Data types of a rollout. Ids are what the engine saw and sampled; they are never re-tokenized.

Glossary: a *sequence* is a list of token ids that the model saw as one context. With the history preset, a
trajectory is one sequence; with the window preset, each turn has its own. A *turn* points into a sequence:
its context is ``ids[:start]`` and its sampled tokens are ``ids[start:end]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np

from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec

T = TypeVar("T")
Ended = Literal["terminated", "truncated", "context"]  # truncated: turn limit; context: no room for a turn
FailureKind = Literal[
    "env_died",  # the environment's process ended
    "env_timeout",  # a step or reset took too long
    "env_error",  # the environment raised
    "prompt",  # the first prompt leaves no room for a response
    "engine",
    "timeout",  # an episode took too long
    "lost",  # the answer of an actor, with the node that held it
    "teacher",  # or the reference policy
    "judge",
    "demonstration",
]


@dataclass(frozen=True)
class Span:
    """Half-open range of positions. The field or function that uses it says what they refer to."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Sampling:
    """How an engine samples one response.

    Training samples use the defaults of the last two, because log-probs must be those of the policy.
    """

    temperature: float
    max_tokens: int
    seed: int | None = None
    top_p: float = 1.0
    json_schema: str | None = None  # constrains the response


@dataclass(frozen=True)
class Generation:
    """One sampled response."""

    ids: np.ndarray  # (n,) int32, including a sampled end-of-turn token
    logprobs: np.ndarray  # (n,) float32 at the sampling temperature
    finish: Literal["stop", "length"]
    versions: np.ndarray  # (n,) int32, the weight version that sampled each token


class EngineError(RuntimeError):
    """An infrastructure failure of an engine. It is retried or counted, never turned into a reward."""


class EngineLost(EngineError):
    """The engine's process has ended and is being replaced, or its successor has no weights yet."""


@dataclass(frozen=True)
class Failure:
    """What kept an episode from being played, or a group from its hints."""

    kind: FailureKind
    message: str
    task: str  # TaskSpec.id


@dataclass(frozen=True)
class Tried(Generic[T]):
    """The outcome of something that is retried after an infrastructure failure."""

    outcome: T | Failure  # a Failure if the last attempt failed too
    retried: tuple[Failure, ...] = ()  # of the attempts before it


@dataclass(frozen=True)
class TokenSequence:
    """One model context."""

    ids: np.ndarray  # (L,) int32
    logprobs: np.ndarray  # (L,) float32, the engine's log-prob of each sampled token; NaN where not sampled
    versions: np.ndarray  # (L,) int32, the weight version that sampled each token; -1 where not sampled


@dataclass(frozen=True)
class Turn:
    """One assistant turn: observation, sampled response and result."""

    sequence: int  # index into Trajectory.sequences
    start: int  # first sampled position in that sequence
    end: int  # one past the last sampled position, which may be an end-of-turn token
    action_span: Span | None  # the action's positions in that sequence; None if malformed
    observation: Observation  # before the action
    response: str  # decoded text, without the end-of-turn token
    action: str | None  # the parsed action; None if malformed
    valid: bool  # well-formed, and admissible if the environment lists its actions
    result: StepResult  # after the action; for a malformed turn: the corrective observation

    @property
    def malformed(self) -> bool:
        """Whether the response contains no valid action."""
        return self.action is None

    @property
    def inadmissible(self) -> bool:
        """Whether the action is not among those that the environment lists."""
        return self.action is not None and not self.valid


TurnAt = tuple[int, int]  # (trajectory, turn): position of a turn in its group


@dataclass(frozen=True)
class Served:
    """Where an episode ran, and when."""

    engine: int
    start: float  # seconds since the epoch
    end: float
    shard: int = 0
    slot: int = 0  # of the shard
    turns: tuple[
        tuple[float, float], ...
    ] = ()  # seconds from `start`: when the engine was asked, and answered


@dataclass(frozen=True)
class Trajectory:
    """One finished episode."""

    task: TaskSpec
    sequences: tuple[TokenSequence, ...]
    turns: tuple[Turn, ...]
    success: bool
    reward: float  # final task reward in [0, 1]
    ended: Ended
    preamble: str = ""  # text shown before the task; not in the turns' observations
    served: Served | None = None

    def versions(self, turn: Turn) -> np.ndarray:
        """(n,) int32, the weight versions that sampled a turn's tokens, in order."""
        return self.sequences[turn.sequence].versions[turn.start : turn.end]


@dataclass(frozen=True)
class Group:
    """Trajectories of one task from the same initial state. Advantages are computed per group."""

    ordinal: int  # position in the task sampler
    task: TaskSpec
    trajectories: tuple[Trajectory, ...]  # fewer than requested if episodes failed after all retries
    failures: tuple[Failure, ...] = ()  # after all retries
    retried: tuple[Failure, ...] = ()  # failures that were retried
    reference: tuple[str, ...] = ()  # the task's reference solution, if a feedback source needs it
