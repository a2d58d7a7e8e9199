"""The interface of environments: Gymnasium's, with text observations and text actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from hindsight.configs.schema import Env
from hindsight.envs.tasks import Manifest, TaskSpec

# <action>…</action>; calls of tools (`envs.tool_calls`); a block of code; <search>…</search> or <answer>
ActionFormat = Literal["tags", "tools", "code", "search"]  # how an agent writes an action
MessageRole = Literal["user", "tool"]  # of an observation
NO_EPISODE = "no episode is under way: reset first"
EVALUATION, TRAINING = "evaluation", "training"  # the panels that every environment has


class EnvError(RuntimeError):
    """An infrastructure failure: never a reward, always retried or counted."""


class SlotDied(EnvError):
    """The process that hosted the episode ended before it answered."""


class SlotTimeout(EnvError):
    """The process did not answer within its deadline and was killed."""


class InstanceLost(EnvError):
    """The instance cannot be used again: its process ends, and the next call gets a new one."""


class BadAnswer(EnvError):
    """The environment answered something that it must not; the message names the task and the field."""


class DataMissing(EnvError):
    """The environment's data are not where the configuration says; the message explains how to get them."""


class NoDemonstration(EnvError):
    """The task has no reference solution, so it cannot be demonstrated."""


class SettingError(EnvError, ValueError):
    """A setting of the environment names something that does not exist; the message lists what does."""


@dataclass(frozen=True)
class Observation:
    """What the agent may see before it acts.

    `rules` and `tools` belong to the whole episode; only the observation of a reset has them. If a benchmark
    adds tools later, the text says so.
    """

    text: str
    actions: tuple[str, ...] = ()  # admissible actions; empty if the benchmark lists none
    state_key: str = ""  # equal keys = the same state for anchors (SERL, GiGPO)
    role: MessageRole = "user"
    rules: str = ""  # who the agent is and which rules it follows: the system message
    tools: tuple[Mapping[str, Any], ...] = ()  # schemas: {"name", "description", "parameters"} each
    goal: str = ""  # the task in one line, if the benchmark states it only at the start

    def admits(self, action: str) -> bool:
        """Whether the action is admissible here."""
        return not self.actions or action in self.actions


@dataclass(frozen=True)
class StepResult:
    """The result of one action."""

    observation: Observation
    feedback: str  # the environment's raw reply to this action
    reward: float  # task reward in [0, 1]; `learner.credit` turns it into training returns
    terminated: bool  # the task ended (won or lost)
    truncated: bool  # cut from outside: no turn is left, or no room in the context
    success: bool  # the benchmark's own success flag
    info: Mapping[str, Any] = field(default_factory=dict)

    def cut(self, verdict: Verdict | None) -> StepResult:
        """This result as the last one of an episode that was cut, with the verdict if there is one."""
        if verdict is None:
            return replace(self, truncated=True)
        info = {**self.info, **verdict.info}
        return replace(self, truncated=True, reward=verdict.reward, success=verdict.success, info=info)


@dataclass(frozen=True)
class Verdict:
    """How the benchmark judges an episode as it stands; fields as in `StepResult`."""

    reward: float
    success: bool
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DemoStep:
    """One step of a demonstration: the action taken, and the one that the expert would have taken.

    They differ in noisy steps, which teach recoveries and give hint-conditioned examples.
    """

    observation: Observation
    action: str
    expert: str
    result: StepResult


@dataclass(frozen=True)
class Demonstration:
    """An episode of a policy that sees only what an agent sees."""

    task: TaskSpec
    first: Observation
    steps: tuple[DemoStep, ...]
    success: bool


class TextEnv(ABC):
    """One environment instance, alone in its process; it runs one episode at a time.

    `reset`, `step` and `finish` keep the protocol and count turns. An environment implements `_reset`,
    `_step` and, if an episode that is cut can have earned something, `_finish`.
    """

    def __init__(self, max_turns: int) -> None:
        """
        Args:
            max_turns: actions after which an episode is truncated.
        """
        # `run_episode` has a limit of its own; this one is for experts, references and people who play.
        self.max_turns = max_turns
        self.turns = 0  # actions taken in this episode, the one of a running `_step` included
        self.playing = False  # whether an episode can continue

    def reset(self, task: TaskSpec) -> Observation:
        """Start the task's episode from its initial state.

        Raises:
            EnvError: the task cannot be loaded.
        """
        self.turns, self.playing = 0, False
        observation = self._reset(task)
        self.playing = True
        return observation

    def step(self, action: str) -> StepResult:
        """Take one action. An inadmissible action is answered by the environment, not raised.

        Raises:
            EnvError: no episode can continue, or the backend failed, which ends the episode.
        """
        self._end()
        self.turns += 1
        result = self._step(action)
        # Anything but a StepResult is returned as it is, for `envs.boundary` to refuse.
        if not isinstance(result, StepResult) or result.terminated or result.truncated:
            return result
        if self.turns >= self.max_turns:
            return result.cut(self._finish())
        self.playing = True
        return result

    def finish(self) -> Verdict | None:
        """End the episode here and judge it: the agent has no turn or no room in its context left.

        Returns None if the last step's result is final.

        Raises:
            EnvError: no episode can continue, or the backend failed.
        """
        self._end()
        return self._finish()

    def _end(self) -> None:
        """End the episode, unless the caller resumes it."""
        if not self.playing:
            raise EnvError(NO_EPISODE)
        self.playing = False

    @abstractmethod
    def _reset(self, task: TaskSpec) -> Observation:
        """The first observation of the task."""

    @abstractmethod
    def _step(self, action: str) -> StepResult:
        """The result of the action. Set `truncated` only if the benchmark itself cuts the episode."""

    def _finish(self) -> Verdict | None:
        """The benchmark's verdict on the episode as it stands."""
        return None

    def reference(self, task: TaskSpec) -> list[str] | None:
        """A solution of the task as a list of actions, or None if the benchmark has none."""
        return None

    def demonstrate(self, task: TaskSpec, seed: int, noise: float) -> Demonstration:
        """Run an episode of an expert that sees what an agent sees. With probability `noise`, a step takes a
        random action that is or was admissible instead of the expert's.

        This implementation replays the reference solution, without noise.

        Raises:
            NoDemonstration: the task has no reference solution.
        """
        actions = self.reference(task)
        if not actions:
            raise NoDemonstration(f"task {task.id} has no reference solution to demonstrate")
        first = observation = self.reset(task)
        steps: list[DemoStep] = []
        for action in actions:
            result = self.step(action)
            steps.append(DemoStep(observation, action, action, result))
            observation = result.observation
            if result.terminated or result.truncated:
                break
        return Demonstration(task, first, tuple(steps), steps[-1].result.success)

    def close(self) -> None:  # noqa: B027 - most instances hold nothing
        """Release the instance's resources."""


class EnvFamily(ABC):
    """An environment before any instance exists: it lists the tasks and makes instances.

    It is pickled into other processes.
    """

    Settings: ClassVar[type[Env]] = Env  # dataclass of its settings; may extend the `env` section
    name: str
    action_format: ActionFormat
    turn_limit: int  # the literature's limit of turns per episode; env.max_turns may be another
    has_references: ClassVar[bool] = True  # whether any task has a reference solution
    KINDS: ClassVar[tuple[str, ...]] = ()  # its task types, in the order in which tasks are drawn
    settings: Env

    def __init__(self, settings: Env, cache: Path) -> None:
        """
        Args:
            settings: an instance of `Settings`.
            cache: folder for what takes long to make.

        Raises:
            ValueError: a setting does not fit the environment.
        """
        unknown = [kind for kind in settings.kinds if kind not in self.KINDS]
        if unknown:
            known = f"use {', '.join(self.KINDS)}" if self.KINDS else "it has none, set env.kinds=[]"
            raise ValueError(f"env.kinds = {unknown} are not task types of {self.name}: {known}")
        self.settings, self.cache = settings, cache
        self.kinds = tuple(kind for kind in self.KINDS if kind in settings.kinds or not settings.kinds)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the environment variables with secrets that its processes need; they get no others."""
        return ()

    @abstractmethod
    def manifest(self) -> Manifest:
        """The tasks, generated or found.

        Raises:
            DataMissing: the configured data folder is not there.
        """

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """The panels that `evaluate.panels` may name, each with what lists its tasks.

        EVALUATION has the tasks that `manifest` holds out, drawn as the settings say. TRAINING has the
        training tasks: success on them shows what a run has fitted, not what it has learned. A panel with
        the benchmark's name before a slash is canonical: all tasks of an official split in its order,
        regardless of `env.kinds`, `env.eval_tasks` and `env.seed`.
        """
        return {EVALUATION: lambda: self.manifest().evaluation, TRAINING: lambda: self.manifest().train}

    def preload(self) -> None:  # noqa: B027 - a family without shared data needs none
        """Load the data that all instances read. It is called once, in the process that slots are forked
        from, so that they share its memory.

        Raises:
            DataMissing: the configured data folder is not there.
        """

    def refresh(self) -> None:  # noqa: B027 - a family without processes needs none
        """Replace dead processes that `preload` started; called before every fork, in the same process."""

    @abstractmethod
    def make(self) -> TextEnv:
        """Make an instance for the calling process."""
