"""What the learner trains on: token sequences with named columns, one value for each sampled token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from hindsight.configs.method import ScoredTokens
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.reading import Note
from hindsight.rollout.types import Failure, Group, Span, Trajectory, Tried
from hindsight.teacher.contexts import ScoreRequest, scored_span


@dataclass
class TrainingSample:
    """One token sequence. L tokens, P of them sampled by the policy (or demonstrated, in SFT).

    All arrays but `ids` are columns. None: not computed; NaN: not for this token.
    """

    ids: np.ndarray  # (L,) int32
    positions: np.ndarray  # (P,) int32, index in `ids` of each sampled token; never 0
    turns: np.ndarray | None = None  # (P,) int32, the turn of the trajectory that sampled it
    rollout_logprobs: np.ndarray | None = None  # (P,) float32, by the engine
    versions: np.ndarray | None = None  # (P,) int32, the weight version that sampled the token
    lags: np.ndarray | None = None  # (P,) int32, how many versions ahead of that the learner is
    advantages: np.ndarray | None = None  # (P,) float32, A before a teacher reweights it; in SFT the weight
    shaped: np.ndarray | None = None  # (P,) float32, A' of a signal that weighs turns
    teacher_logprobs: np.ndarray | None = None  # (P,) float32, by the teacher, who saw a hint
    reference_logprobs: np.ndarray | None = None  # (P,) float32, by the reference policy
    values: np.ndarray | None = None  # (P,) float32, V of the state before the token, before the update
    returns: np.ndarray | None = None  # (P,) float32, what V is trained toward
    candidates: np.ndarray | None = None  # (P, k) int32, the student's most likely tokens
    teacher_candidates: np.ndarray | None = None  # (P, k) float32, the teacher's log-probs of those
    masks: dict[str, np.ndarray] = field(default_factory=dict)  # loss -> (P,) bool, its tokens; absent: all

    def within(self, span: Span) -> slice:
        """Which of the P tokens lie in a span of the sequence."""
        start, end = np.searchsorted(self.positions, (span.start, span.end))
        return slice(int(start), int(end))

    def column(self, name: str) -> np.ndarray:
        """A column that has been computed."""
        held: np.ndarray | None = getattr(self, name)
        assert held is not None, f"{name} has not been computed"
        return held

    def has(self, columns: Iterable[str]) -> bool:
        """Whether all these columns have been computed."""
        return all(getattr(self, name) is not None for name in columns)

    def mark(self, loss: str, where: slice) -> None:
        """Give a loss some more tokens."""
        self.masks.setdefault(loss, np.zeros(len(self.positions), bool))[where] = True

    def put(self, column: str, where: slice | np.ndarray, values: np.ndarray) -> None:
        """Write a column at some tokens; elsewhere it stays as it was, or NaN."""
        held = getattr(self, column)
        if held is None:
            blank = np.nan if values.dtype.kind == "f" else 0
            held = np.full((len(self.positions), *values.shape[1:]), blank, values.dtype)
            setattr(self, column, held)
        held[where] = values

    def as_shaped(self) -> TrainingSample:
        """The sample with A' in place of A, where a signal has written it."""
        return self if self.shaped is None else replace(self, advantages=self.shaped)

    def select(self, loss: str) -> TrainingSample:
        """The sample with the tokens of one loss only."""
        if loss not in self.masks:
            return self
        columns = {name: getattr(self, name) for name in COLUMNS}
        mask = self.masks[loss]
        kept = {name: column[mask] for name, column in columns.items() if column is not None}
        return replace(self, **kept, masks={})


COLUMNS = tuple(one.name for one in fields(TrainingSample) if one.name not in ("ids", "masks"))


def joined(samples: Iterable[TrainingSample], name: str) -> np.ndarray:
    """(P,) float32: a column over the tokens of all samples; NaN for samples without it."""
    held = [(getattr(sample, name), len(sample.positions)) for sample in samples]
    parts = [np.full(size, np.nan) if column is None else column for column, size in held]
    return np.concatenate([np.zeros(0), *parts]).astype(np.float32)


@dataclass
class TrajectorySamples:
    """Training samples of one trajectory, with its hints and judge notes for display."""

    samples: list[TrainingSample]  # one per sequence that has sampled tokens
    hints: dict[int, np.ndarray] = field(
        default_factory=dict
    )  # turn -> (n,) int32 ids, as the teacher read them
    notes: dict[int, Note] = field(default_factory=dict)  # turn -> what a judge said of it


@dataclass
class SampleGroup:
    """The samples of one task's trajectories, and what is known of the group."""

    group: Group
    trajectories: list[TrajectorySamples]
    failures: list[Failure] = field(default_factory=list)  # of the rollout, and since then
    figures: dict[str, float] = field(default_factory=dict)  # metrics, which a step sums over its groups
    rolled_out: float = 0.0  # time.monotonic() when the last episode ended
    times: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # role -> when, time.time()

    @property
    def samples(self) -> list[TrainingSample]:
        """All samples."""
        return [sample for trajectory in self.trajectories for sample in trajectory.samples]

    @property
    def informative(self) -> bool:
        """Whether any advantage is not 0, as it was or as a signal has shaped it."""
        columns = (one for sample in self.samples for one in (sample.advantages, sample.shaped))
        return any(column is not None and column.any() for column in columns)

    def note(self, role: str, *spans: tuple[float, float]) -> None:
        """Note when a role worked for the group."""
        self.times.setdefault(role, []).extend(spans)

    def count(self, figures: Mapping[str, float]) -> None:
        """Add to the group's metrics."""
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value

    def take(self, part: SampleGroup) -> None:
        """Add what was counted for a part of the group's trajectories, which are shared with it."""
        self.failures += part.failures
        self.count(part.figures)
        for role, spans in part.times.items():
            self.note(role, *spans)

    def find(self, request: ScoreRequest, tokens: ScoredTokens) -> tuple[TrainingSample, slice]:
        """The sample that holds a request's turn, and which of its tokens the request scores.

        Args:
            tokens: `signal.tokens`.
        """
        span = scored_span(self.group.trajectories[request.trajectory].turns[request.turn], tokens)
        assert span is not None, "a turn without an action is never scored"
        samples = self.trajectories[request.trajectory].samples
        sample = next(one for one in samples if one.turns is not None and request.turn in one.turns)
        return sample, sample.within(span)

    def put(
        self, column: str, found: Sequence[tuple[TrainingSample, slice]], values: Sequence[np.ndarray]
    ) -> None:
        """Write a column at the tokens that `find` found for each request.

        Raises:
            ValueError: there is not one value for each token.
        """
        for (sample, where), own in zip(found, values, strict=True):
            if len(own) != where.stop - where.start:
                raise ValueError(f"{column}: {len(own)} values for {where.stop - where.start} tokens")
            sample.put(column, where, own)


class OpenGroup:
    """A group while it is rolled out: its episodes in order, each None until it is over."""

    def __init__(self, ordinal: int, task: TaskSpec, size: int, awaits_reference: bool = False) -> None:
        """
        Args:
            awaits_reference: whether the task's reference solution belongs to it.
        """
        self.ordinal, self.task = ordinal, task
        self.episodes: list[Trajectory | Failure | None] = [None] * size
        self.reference: tuple[str, ...] | Failure | None = None if awaits_reference else ()
        self._retried: list[Failure] = []
        self._samples: dict[int, TrajectorySamples] = {}

    def end(self, index: int, played: Tried[Trajectory]) -> None:
        """Note how an episode ended.

        Raises:
            ValueError: a sampled token has no log-prob.
        """
        self.episodes[index] = played.outcome
        self._retried += played.retried
        if isinstance(played.outcome, Trajectory):
            self._samples[index] = _samples(played.outcome)

    def solve(self, solved: Tried[tuple[str, ...]]) -> None:
        """Note the reference solution."""
        self.reference = solved.outcome
        self._retried += solved.retried

    def so_far(self) -> SampleGroup:
        """The group of the trajectories that are over. What is written into it stays."""
        known = [*self.episodes, self.reference]
        group = Group(
            self.ordinal,
            self.task,
            tuple(one for one in self.episodes if isinstance(one, Trajectory)),
            failures=tuple(one for one in known if isinstance(one, Failure)),
            retried=tuple(self._retried),
            reference=self.reference if isinstance(self.reference, tuple) else (),
        )
        made = [self._samples[index] for index in sorted(self._samples)]
        return SampleGroup(group, made, failures=list(group.failures))


def to_samples(group: Group) -> SampleGroup:
    """The samples of a group, with positions, turns, the engine's log-probs and its weight versions.

    Raises:
        ValueError: a sampled token has no log-prob.
    """
    made = [_samples(trajectory) for trajectory in group.trajectories]
    return SampleGroup(group, made, failures=list(group.failures))


def _samples(trajectory: Trajectory) -> TrajectorySamples:
    samples = []
    for index, sequence in enumerate(trajectory.sequences):
        own = [(number, turn) for number, turn in enumerate(trajectory.turns) if turn.sequence == index]
        if not own:
            continue
        positions = np.concatenate([np.arange(turn.start, turn.end, dtype=np.int32) for _, turn in own])
        turns = np.concatenate([np.full(turn.end - turn.start, number, np.int32) for number, turn in own])
        logprobs = sequence.logprobs[positions].astype(np.float32)
        if np.isnan(logprobs).any():
            raise ValueError(f"task {trajectory.task.id}: a sampled token has no rollout log-prob")
        versions = sequence.versions[positions]
        samples.append(TrainingSample(sequence.ids, positions, turns, logprobs, versions))
    return TrajectorySamples(samples)
