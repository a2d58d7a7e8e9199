"""Writes the record of a run into its folder: episodes, tokens and the timeline."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from pathlib import Path

from hindsight.cluster.report.groups import group_row
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.record import PolicyLoss, evaluation_rows, step_rows, token_rows
from hindsight.cluster.report.run_folder import (
    EPISODES,
    GROUPS,
    TOKENS,
    evaluation_key,
    step_key,
    step_of_key,
)
from hindsight.cluster.report.timeline import Timeline
from hindsight.learner.samples import SampleGroup
from hindsight.rollout.types import Trajectory


class Recorder:
    """Replaces files atomically, or appends lines to them; what cannot be written is an OSError."""

    def __init__(self, out: Path, pieces: Pieces) -> None:
        """`out`: the run's folder."""
        self.out, self.pieces = out, pieces
        self.timeline = Timeline(out)

    def step(
        self, step: int, batch: Sequence[SampleGroup], lost: Sequence[SampleGroup], loss: PolicyLoss
    ) -> None:
        """Write a finished training step.

        Args:
            batch: its groups. lost: groups that failures kept from training; only their time is written.
        """
        key = step_key(step)
        write_rows(self.out / TOKENS / f"{key}.jsonl.gz", token_rows(batch, loss, self.pieces))
        write_rows(self.out / GROUPS / f"{key}.jsonl.gz", map(group_row, batch))
        # Last: a reader that follows the run takes a step as there when it has episodes.
        write_rows(self.out / EPISODES / f"{key}.jsonl", step_rows(batch, self.pieces))
        self.timeline.groups(step, (*batch, *lost))

    def evaluation(
        self, step: int, stage: str, plays: Iterable[Sequence[Trajectory]], panel: str = ""
    ) -> None:
        """Write the episodes of an evaluation on a panel, of which the first needs no name.

        Each play has one trial, or several.
        """
        key = evaluation_key(step, stage, panel)
        plays = list(plays)
        write_rows(self.out / EPISODES / f"{key}.jsonl", evaluation_rows(plays))
        self.timeline.evaluation(step, stage, chain.from_iterable(plays))

    def truncate(self, step: int, evaluated: Collection[tuple[int, str]] = ()) -> None:
        """Drop what belongs to later steps, −1 for all steps: a resumed run writes it again.

        Args:
            evaluated: step and stage of the evaluations that it does not make again.
        """
        for folder in (EPISODES, TOKENS, GROUPS):
            for file in (self.out / folder).glob("*.jsonl*"):
                own = step_of_key(file.name.partition(".")[0])
                if own is not None and own > step:
                    file.unlink()
        self.timeline.truncate(step, evaluated)
