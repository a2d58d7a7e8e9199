"""A finished step or evaluation as rows of JSON: episodes for people, turns with numbers per token. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from hindsight.cluster.report.lines import Row
from hindsight.cluster.report.pieces import Pieces
from hindsight.learner.losses import token_weights
from hindsight.learner.samples import SampleGroup, TrainingSample, joined
from hindsight.learner.signals import TeacherSignal
from hindsight.rollout.types import Trajectory

COLUMNS = {  # by their name in the row of a turn
    "advantage": "advantages",
    "rollout_logprob": "rollout_logprobs",
    "teacher_logprob": "teacher_logprobs",
    "reference_logprob": "reference_logprobs",
    "value": "values",
    "return": "returns",
    "lag": "lags",
}
DECIMALS = {"lag": 0, "share": 12}  # of a number in a file; 5 for all others


@dataclass(frozen=True)
class PolicyLoss:
    """What decides how the policy loss of a step weighted each token."""

    samples: Collection[TrainingSample]  # that took part in it
    signal: TeacherSignal
    strength: float  # λ of the step
    aggregation: str  # `loss.aggregation`


def episode_row(
    trajectory: Trajectory,
    episode: int,
    *,
    group: int | None = None,
    trial: int | None = None,
    taught: Mapping[int, Row] | None = None,
) -> Row:
    """One episode as people read it.

    Args:
        episode: its index in the file.
        group: ordinal of its group.
        trial: from 1, if the agent has several.
        taught: by turn, what is known of it since the episode ended: "hint", "notes".
    """
    known = {"group": group, "trial": trial, "preamble": trajectory.preamble or None}
    return {
        "episode": episode,
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "success": trajectory.success,
        "reward": trajectory.reward,
        "ended": trajectory.ended,
        "tokens": sum(turn.end - turn.start for turn in trajectory.turns),
        **{name: value for name, value in known.items() if value is not None},
        "turns": [
            {
                "observation": turn.observation.text,
                "response": turn.response,
                "action": turn.action,
                "valid": turn.valid,
                "feedback": turn.result.feedback,
                "reward": turn.result.reward,
                "weights": np.unique(trajectory.versions(turn)).tolist(),
                **(taught or {}).get(number, {}),
            }
            for number, turn in enumerate(trajectory.turns)
        ],
    }


def step_rows(groups: Sequence[SampleGroup], pieces: Pieces) -> Iterator[Row]:
    """The episodes of a training step, with hints as the teacher read them, and notes."""
    episode = 0
    for one in groups:
        for trajectory, samples in zip(one.group.trajectories, one.trajectories, strict=True):
            taught: dict[int, Row] = {
                turn: {"hint": pieces.text(ids).strip()} for turn, ids in samples.hints.items()
            }
            for turn, note in samples.notes.items():
                taught.setdefault(turn, {})["notes"] = [asdict(note)]
            yield episode_row(trajectory, episode, group=one.group.ordinal, taught=taught)
            episode += 1


def evaluation_rows(plays: Iterable[Sequence[Trajectory]]) -> Iterator[Row]:
    """The episodes of an evaluation; each play has one trial, or several."""
    tried = [(trial, t) for play in plays for trial, t in enumerate(play, start=1)]
    several = any(trial > 1 for trial, _ in tried)
    for episode, (trial, trajectory) in enumerate(tried):
        yield episode_row(trajectory, episode, trial=trial if several else None)


def token_rows(groups: Sequence[SampleGroup], loss: PolicyLoss, pieces: Pieces) -> Iterator[Row]:
    """The turns of a training step in the order of `step_rows`, with arrays over their n sampled tokens."""
    samples = [sample for one in groups for sample in one.samples]
    arrays = {name: joined(samples, column) for name, column in COLUMNS.items()}
    arrays |= loss_columns(samples, loss)
    columns = {name: _plain(values, DECIMALS.get(name, 5)) for name, values in arrays.items()}
    starts = np.cumsum([0, *(len(sample.positions) for sample in samples)])
    offsets = {id(sample): int(start) for sample, start in zip(samples, starts[:-1], strict=True)}
    played = [pair for one in groups for pair in zip(one.group.trajectories, one.trajectories, strict=True)]
    for episode, (trajectory, own) in enumerate(played):
        places = {
            turn: place for sample in own.samples for turn, place in _turns(sample, offsets[id(sample)])
        }
        seen: dict[int, int] = {}  # of each sequence, up to the last response
        for number, turn in enumerate(trajectory.turns):
            ids, action = trajectory.sequences[turn.sequence].ids, turn.action_span
            sampled = ids[turn.start : turn.end]
            yield {
                "episode": episode,
                "turn": number,
                "prompt": pieces.text(ids[seen.get(turn.sequence, 0) : turn.start]),
                "tokens": pieces.split(sampled),
                "ids": sampled.tolist(),
                "action": action and [action.start - turn.start, action.end - turn.start],
                **{name: values[places[number]] for name, values in columns.items()},
            }
            seen[turn.sequence] = turn.end


def loss_columns(samples: Sequence[TrainingSample], loss: PolicyLoss) -> dict[str, np.ndarray]:
    """The columns weight, raw_weight and share over all tokens of the samples; NaN: none.

    As in the loss, but Δ is against the rollout's log-probs: those that the learner has during its update are
    not kept. raw_weight is absent if the signal's λ is 0.
    """
    read = ("advantages", "shaped", "teacher_logprobs", "rollout_logprobs")
    advantages, shaped, teacher, rollout = (torch.from_numpy(joined(samples, name)) for name in read)
    gap = teacher - rollout
    scored = ~torch.isnan(gap)
    shaped = loss.signal.shape(torch.where(shaped.isnan(), advantages, shaped), gap, loss.strength)
    kept = torch.where(shaped == advantages, 1.0, shaped / advantages)
    found = {"weight": torch.where(scored, kept, torch.nan)}
    if loss.strength > 0:
        raw = torch.full_like(gap, torch.nan)
        raw[scored] = loss.signal.weights(advantages[scored], gap[scored])[1]
        found["raw_weight"] = raw
    rows = torch.repeat_interleave(torch.tensor([len(one.positions) for one in samples], dtype=torch.int64))
    taken = {id(sample) for sample in loss.samples}
    used = torch.tensor([id(sample) in taken for sample in samples], dtype=torch.bool)[rows]
    load = torch.where(used, shaped.abs() * token_weights(rows, loss.aggregation), 0.0).double()
    found["share"] = load / load.sum()  # NaN if there is no policy loss
    return {name: values.numpy() for name, values in found.items()}


def _turns(sample: TrainingSample, offset: int) -> Iterator[tuple[int, slice]]:
    """The turns of a sample, and where their tokens are among those of all samples."""
    turns, starts = np.unique(sample.column("turns"), return_index=True)
    ends = [*starts[1:].tolist(), len(sample.positions)]
    for turn, start, end in zip(turns.tolist(), starts.tolist(), ends, strict=True):
        yield turn, slice(offset + start, offset + end)


def _plain(values: np.ndarray, decimals: int) -> list[float | int | None]:
    """Numbers as JSON has them; None for what is not finite."""
    plain = np.full(len(values), None, object)
    known = np.isfinite(values)
    rounded = np.round(values[known].astype(np.float64), decimals)
    plain[known] = rounded if decimals else rounded.astype(np.int64)
    return plain.tolist()
