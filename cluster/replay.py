"""Train on a recorded step again, in this process: `hindsight replay`.

    groups/step-000003.jsonl.gz ──► groups ──► Method.annotate, finish, update ──► figures vs. the recorded

The code is the run's: `Method`, the plan of the update, its losses and the teacher. Objects in this process
replace the actors, so a debugger stops anywhere. There are no engines and no environments, and nothing is
written into the run's folder.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from rich import box
from rich.table import Table

from hindsight.cluster.local import ReplayError, open_local, recorded_judge
from hindsight.cluster.method import Method
from hindsight.cluster.metrics import ASKED
from hindsight.cluster.report.groups import GroupError, read_group
from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.record import PolicyLoss, token_rows
from hindsight.cluster.report.run_folder import CONFIG, RunFolder, step_key
from hindsight.cluster.run import Run
from hindsight.cluster.train import learning_rate
from hindsight.configs.check import check_config
from hindsight.configs.load import ConfigError, load_config, methods
from hindsight.configs.registry import REGISTRIES
from hindsight.configs.schema import Config
from hindsight.learner.checkpoint import checkpoint_step, complete, read_state, verify_checkpoint
from hindsight.learner.samples import SampleGroup, to_samples
from hindsight.rollout.device import find_device

METHOD_SECTIONS = ("feedback", "credit", "signal")  # whose settings depend on the entry that they name
COMPARED = ("advantage", "teacher_logprob", "reference_logprob", "weight")  # of tokens/


@dataclass(frozen=True)
class Apart:
    """How the numbers of the tokens differ from the recorded ones."""

    largest: float  # difference of a number that both have
    missing: int  # tokens for which only one of them has a number


@dataclass
class Replayed:
    """What came out, and what was recorded."""

    config: Config
    batch: list[SampleGroup]
    figures: dict[str, float]  # by the names of metrics.jsonl
    recorded: dict[str, float]  # those of the step
    tokens: dict[str, Apart]
    notes: list[str]  # what makes the two differ


async def replay_step(path: Path, step: int, overrides: Sequence[str] = (), update: bool = True) -> Replayed:
    """Train on the groups of a step again, from the newest checkpoint before it.

    Args:
        path: the run's folder. step: from 1.
        overrides: `key=value`, on top of the run's settings; `method=NAME` replaces those of its method.
        update: False stops after the teacher.

    Raises:
        ReplayError: the step was not recorded, or the method needs what is not here.
    """
    run = RunFolder(path)
    groups, version = read_step(run, step)
    start = checkpoint_before(path, step)
    config = settled(read_settings(run, overrides), start)
    if config.needs_critic:
        raise ReplayError(
            f"credit.advantage = {config.credit.advantage} needs a critic, which replay has not: choose "
            "another method"
        )
    with recorded_judge(config, path) as judge:
        local = open_local(config, start, judge, version)
        method = Method(cast(Run, local))  # it has what a method asks of a run
        if update or method.signal.num_candidates:
            await local.actors.open_learner(config, local.model, start)
        for group in groups:
            await method.annotate(group, step - 1)
    await method.finish(groups, step - 1)
    figures = {name: sum(group.figures.get(name, 0.0) for group in groups) for name in ASKED}
    if update:
        figures |= await method.update(groups, step - 1, lambda peak: learning_rate(config, step - 1, peak))
    strength, used = method.strength(step - 1), method.policy_samples(groups)
    loss = PolicyLoss(used, method.signal, strength, config.loss.aggregation)
    return Replayed(
        config,
        groups,
        {name: value for name, value in figures.items() if "seconds" not in name},
        next((row for row in run.metrics("train") if row["step"] == step), {}),
        compare(list(token_rows(groups, loss, Pieces(lambda _: b""))), run.tokens(step_key(step))),
        _notes(config, step, start, groups),
    )


def read_step(run: RunFolder, step: int) -> tuple[list[SampleGroup], int]:
    """The groups of a step, and the version of the learner's weights before it.

    Raises:
        ReplayError: they were not recorded.
    """
    rows = run.groups(step_key(step))
    if not rows:
        known = [stage.step for stage in run.steps() if stage.training and run.groups(stage.key)]
        raise ReplayError(
            f"{run.path} has no groups of step {step}. It has those of "
            f"{', '.join(map(str, known)) or 'no step'}"
        )
    try:
        found = [read_group(row) for row in rows]
    except GroupError as error:
        raise ReplayError(f"the groups of step {step} in {run.path} cannot be read: {error}") from error
    return [to_samples(one.group) for one in found], found[0].version


def checkpoint_before(path: Path, step: int) -> Path | None:
    """The newest checkpoint from before a step, if one is left.

    Raises:
        Damaged: it is not as it was written.
    """
    before = [folder for folder in complete(path / "checkpoints") if checkpoint_step(folder) < step]
    if before:
        verify_checkpoint(before[-1])
    return before[-1] if before else None


def read_settings(run: RunFolder, overrides: Sequence[str]) -> Config:
    """The run's settings with the overrides.

    Raises:
        ReplayError: they cannot be read, or contradict each other.
    """
    values = run.config()
    if any(override.startswith("method=") for override in overrides):
        values = without_method(values)
    values.pop("method", None)  # what its file sets is there already
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, CONFIG)
        file.write_text(yaml.safe_dump(values))
        try:
            config = load_config(file, overrides)
        except ConfigError as error:
            raise ReplayError(str(error)) from error
    # Recorded answers need no key; `recorded_judge` says if one is needed.
    if problems := [one for one in check_config(config) if not one.startswith("judge.api_key_env")]:
        raise ReplayError("\n".join(problems))
    return config


def without_method(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without what its method's file sets, so that another method finds the defaults."""
    name = str(values.get("method") or "")
    file = methods().get(name) or Path(name)
    own = yaml.safe_load(file.read_text()) if file.is_file() else {}
    kept = dict(values)
    for section, inner in own.items():
        if isinstance(inner, dict) and isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key not in inner}
    for section in METHOD_SECTIONS:
        registry = REGISTRIES[section]
        entry, shared = registry.key.rpartition(".")[2], {one.name for one in fields(registry.section)}
        held = {key: value for key, value in kept.get(section, {}).items() if key in shared}
        kept[section] = held | {entry: getattr(registry.section(), entry)}
    return kept


def settled(config: Config, start: Path | None) -> Config:
    """The settings with what a run's plan would decide, for one process."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if find_device() == "cpu" else "bfloat16"
        dtype = read_state(start)["dtype"] if start else dtype
    recompute = bool(config.learner.gradient_checkpointing)
    learner = replace(config.learner, ranks=1, zero_stage=0, gradient_checkpointing=recompute)
    return replace(config, model=replace(config.model, dtype=dtype), learner=learner)


def compare(
    rows: Sequence[Mapping[str, Any]], recorded: Mapping[int, Mapping[int, Mapping[str, Any]]]
) -> dict[str, Apart]:
    """How the numbers of a step's turns (`record.token_rows`) differ from those of tokens/, by column.

    Columns that no token has in either are left out.
    """
    found = {}
    for name in COMPARED:
        held = [recorded.get(row["episode"], {}).get(row["turn"], {}).get(name) for row in rows]
        lists = [own or [None] * len(row[name]) for row, own in zip(rows, held, strict=True)]
        ours = np.concatenate([np.array(row[name], np.float64) for row in rows])
        theirs = np.concatenate([np.array(own, np.float64) for own in lists])
        either, both = ~(np.isnan(ours) & np.isnan(theirs)), ~(np.isnan(ours) | np.isnan(theirs))
        if either.any():
            largest = np.abs(ours - theirs)[both].max(initial=0.0)
            found[name] = Apart(float(largest), int(either.sum() - both.sum()))
    return found


def _notes(config: Config, step: int, start: Path | None, groups: Sequence[SampleGroup]) -> list[str]:
    """What makes the figures differ from the recorded ones, apart from settings."""
    notes = []
    if start is None:
        notes.append(f"no checkpoint from before step {step} is left: weights are those of model.path")
    elif checkpoint_step(start) < step - 1:
        notes.append(f"weights are those of {start.name}, the newest checkpoint from before step {step}")
    if config.feedback.needs_solution and not any(group.group.reference for group in groups):
        notes.append(
            f"the run recorded no reference solutions, which feedback.sources={config.feedback.sources} need"
        )
    for group in groups:
        notes += [
            f"group {group.group.ordinal}: {failure.kind}: {failure.message}"
            for failure in group.failures[len(group.group.failures) :]
        ]
    return notes


def differs(ours: float | None, theirs: float | None) -> bool:
    """Whether a figure is another one than the recorded, beyond rounding."""
    if ours is None or theirs is None:
        return ours is not theirs
    return not math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=2e-5)


def replay_tables(replayed: Replayed) -> Iterator[Table | str]:
    """The figures next to the recorded ones, those of the tokens, and what makes them differ."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    for name in ("recorded", "replayed"):
        table.add_column(name, justify="right")
    for name, value in sorted(replayed.figures.items()):
        held = replayed.recorded.get(name)
        style = "yellow" if differs(value, held) else None
        table.add_row(name, "–" if held is None else f"{held:.6g}", f"{value:.6g}", style=style)
    yield table
    tokens = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("of each token", "largest difference", "tokens that only one has"):
        tokens.add_column(name, justify="left" if name == "of each token" else "right")
    for name, apart in replayed.tokens.items():
        tokens.add_row(name, f"{apart.largest:.3g}", str(apart.missing))
    yield tokens
    yield from replayed.notes
