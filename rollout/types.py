"""What a rollout is made of. Ids are what the engine saw and sampled; nothing here is ever tokenized again.

Glossary: a *sequence* is one list of token ids that the model saw as one context. With the full-history
prompt a whole trajectory is one sequence; with the window prompt every turn is its own. A *turn* points
into a sequence: its context is ``ids[:start]`` and the tokens it sampled are ``ids[start:end]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec


@dataclass(frozen=True)
class Span:
    """Half-open range of token positions, relative to what its owner says."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Sampling:
    """How an engine samples one response.

    What is trained on has the defaults of the last two: log-probs must be the policy's own.
    """

    temperature: float
    max_tokens: int
    seed: int | None = None
    top_p: float = 1.0
    json_schema: str | None = None  # the response is held to this JSON schema


@dataclass(frozen=True)
class Generation:
    """What an engine sampled for one prompt."""

    ids: np.ndarray  # (n,) int32, an end-of-turn token that was sampled included
    logprobs: np.ndarray  # (n,) float32 at the sampling temperature
    finish: str  # "stop" | "length"
    weight_version: int  # the oldest weights that sampled any of the tokens


class EngineError(RuntimeError):
    """An infrastructure failure of an engine: never a reward, always retried or counted."""


@dataclass(frozen=True)
class Failure:
    """One infrastructure failure, counted against the run's budget."""

    kind: str  # "env_died" | "env_timeout" | "env_error" | "engine" | "teacher" | "judge" | "demonstration"
    message: str
    task: str  # TaskSpec.id


@dataclass(frozen=True)
class TokenSequence:
    """One model context."""

    ids: np.ndarray  # (L,) int32
    logprobs: np.ndarray  # (L,) float32, the engine's log-prob of each sampled token; NaN where not sampled


@dataclass(frozen=True)
class Turn:
    """One assistant turn: what was seen, what was sampled, what came of it."""

    sequence: int  # index into Trajectory.sequences
    start: int  # first sampled position in that sequence
    end: int  # one past the last sampled position (an end-of-turn token that was sampled is included)
    action_span: Span | None  # executable-action tokens, positions in that sequence; None: did not parse
    observation: Observation  # before the action
    response: str  # decoded sampled text
    action: str | None  # the parsed action; None: malformed
    valid: bool  # well formed, and admissible where the environment lists its actions
    result: StepResult  # after the action; for a malformed turn: the corrective observation
    weight_version: int  # version of the engine's weights that sampled it

    @property
    def malformed(self) -> bool:
        """Nothing could be read as an action."""
        return self.action is None

    @property
    def inadmissible(self) -> bool:
        """An action, but none of those that the environment lists."""
        return self.action is not None and not self.valid


TurnAt = tuple[int, int]  # (trajectory, turn): where a turn stands in its group


@dataclass(frozen=True)
class Trajectory:
    """One finished episode."""

    task: TaskSpec
    sequences: tuple[TokenSequence, ...]
    turns: tuple[Turn, ...]
    success: bool
    reward: float  # final task reward in [0, 1]
    ended: str  # "terminated" | "truncated" (turn limit) | "context" (no room for another turn)
    preamble: str = ""  # what the agent was shown before the task; not in the turns' observations


@dataclass(frozen=True)
class Group:
    """The trajectories of one task from one initial state: the unit that advantages are computed over."""

    ordinal: int  # position in the task sampler
    task: TaskSpec
    trajectories: tuple[Trajectory, ...]  # fewer than asked for where retries did not help
    failures: tuple[Failure, ...] = ()  # that retries did not mend
    retried: tuple[Failure, ...] = ()  # after which it was tried again
    reference: tuple[str, ...] = ()  # the task's reference solution, where feedback.source asks for it

    @property
    def oldest_version(self) -> int:
        """The oldest weight version that sampled any turn; staleness is measured from it."""
        return min(turn.weight_version for trajectory in self.trajectories for turn in trajectory.turns)
