"""What it costs to record a training step: seconds of the driver, and bytes in the run's folder.

    python -m benchmarks.record [--groups 24] [--episodes 8] [--turns 20] [--tokens 30] [--preset window]

The step is synthetic: random words of the model's vocabulary, all turns with a hint, every action scored.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.record import PolicyLoss
from hindsight.cluster.report.recorder import Recorder
from hindsight.configs.load import load_config
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.samples import SampleGroup, to_samples
from hindsight.learner.signals import make_signal
from hindsight.rollout.models import resolve
from hindsight.rollout.render import Renderer, load_renderer
from hindsight.rollout.types import Group, Served, Span, TokenSequence, Trajectory, Turn

FIRST, OBSERVED, HINT = 400, 80, 200  # tokens of the first prompt, of each later observation, and of a hint
WORDS = 5000  # of the vocabulary that occur
REPEATS = 3


def sequence(rng: np.random.Generator, length: int, spans: list[Span]) -> TokenSequence:
    """Random tokens, some of them sampled."""
    logprobs, versions = np.full(length, np.nan, np.float32), np.full(length, -1, np.int32)
    for span in spans:
        logprobs[span.start : span.end] = rng.uniform(-4, 0, len(span))
        versions[span.start : span.end] = 3
    return TokenSequence(rng.integers(100, 100 + WORDS, length, dtype=np.int32), logprobs, versions)


def episode(
    rng: np.random.Generator, renderer: Renderer, task: TaskSpec, turns: int, tokens: int, window: bool
) -> Trajectory:
    """One episode; with `window`, each turn has a context of its own, of the size of the first prompt."""
    starts = [FIRST] * turns if window else [FIRST + n * (tokens + OBSERVED) for n in range(turns)]
    spans = [Span(start, start + tokens) for start in starts]
    if window:
        sequences = tuple(sequence(rng, span.end, [span]) for span in spans)
    else:
        sequences = (sequence(rng, spans[-1].end, spans),)
    seen = Observation(renderer.decode(sequences[0].ids[:OBSERVED]))
    result = StepResult(seen, seen.text, 0.0, False, False, False)
    made = []
    for number, span in enumerate(spans):
        place = number if window else 0
        response = renderer.decode(sequences[place].ids[span.start : span.end])
        action = Span(span.start + tokens // 2, span.end - 1)
        made.append(Turn(place, span.start, span.end, action, seen, response, "look", True, result))
    times = tuple((2.0 * number, 2.0 * number + 1.5) for number in range(turns))
    served = Served(0, time.time(), time.time() + 2.0 * turns, 0, 0, times)
    success = bool(rng.integers(2))
    return Trajectory(task, sequences, tuple(made), success, 0.0, "truncated", served=served)


def taught(rng: np.random.Generator, group: SampleGroup) -> SampleGroup:
    """The group with advantages, the teacher's scores of the actions, and hints."""
    for trajectory, made in zip(group.group.trajectories, group.trajectories, strict=True):
        for sample in made.samples:
            size = len(sample.positions)
            sample.advantages = np.full(size, rng.normal(), np.float32)
            sample.lags = np.zeros(size, np.int32)
            sample.teacher_logprobs = np.full(size, np.nan, np.float32)
        for number, turn in enumerate(trajectory.turns):
            assert turn.action_span is not None
            sample = next(one for one in made.samples if number in one.column("turns"))
            where = sample.within(turn.action_span)
            sample.put(
                "teacher_logprobs", where, rng.uniform(-4, 0, len(turn.action_span)).astype(np.float32)
            )
            made.hints[number] = rng.integers(100, 100 + WORDS, HINT, dtype=np.int32)
    group.times = {"rollout": [(0.0, 1.0)], "teacher": [(1.0, 2.0)]}
    return group


def main(
    groups: Annotated[int, typer.Option(help="of the step")] = 24,
    episodes: Annotated[int, typer.Option(help="of a group")] = 8,
    turns: Annotated[int, typer.Option(help="of an episode")] = 20,
    tokens: Annotated[int, typer.Option(help="sampled in a turn")] = 30,
    model: Annotated[str, typer.Option(help="whose tokenizer reads them")] = "smollm2-135m",
    preset: Annotated[str, typer.Option(help="prompt.preset: history or window")] = "history",
) -> None:
    """Record the same step several times; the first one also looks up every token."""
    config = load_config("nano", ["method=serl", f"model.path={model}", f"prompt.preset={preset}"])
    renderer, rng = load_renderer(str(resolve(model)), config), np.random.default_rng(0)
    batch = []
    for ordinal in range(groups):
        task = TaskSpec(f"task {ordinal}", "toy", "find", "train")
        played = [episode(rng, renderer, task, turns, tokens, preset == "window") for _ in range(episodes)]
        batch.append(taught(rng, to_samples(Group(ordinal, task, tuple(played)))))
    used = [sample for group in batch for sample in group.samples]
    loss = PolicyLoss(used, make_signal(config.signal), 0.5, config.loss.aggregation)
    table = Table("file", "KiB", title=f"{groups} × {episodes} episodes × {turns} turns × {tokens} tokens")
    with tempfile.TemporaryDirectory(prefix="hindsight-record-") as folder:
        recorder, seconds = Recorder(Path(folder), Pieces(renderer.token_bytes)), []
        for _ in range(REPEATS):
            began, used_before = time.perf_counter(), time.process_time()
            recorder.step(1, batch, [], loss)
            seconds.append((time.perf_counter() - began, time.process_time() - used_before))
        for file in sorted(Path(folder).rglob("*.jsonl*")):
            table.add_row(file.relative_to(folder).as_posix(), f"{file.stat().st_size / 1024:,.0f}")
    for wall, cpu in seconds:
        table.add_row("", f"{wall:.2f} s, {cpu:.2f} s of a core")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
