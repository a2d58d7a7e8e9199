"""Compare runs: settings that differ, learning curves, and the success of evaluations paired by task."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich import box
from rich.table import Table

from hindsight.cluster.outcomes import Figure, Plays, all_figures, bootstrap, paired, plays_of
from hindsight.cluster.report.run_folder import COLD, RunFolder, evaluation_key, flat, short_names

OWN = ("out", "resume")  # settings that say nothing about what was trained
TRAINING = "training"  # the stage of points that are no evaluation

Axis = Literal["step", "turns", "seconds"]  # what learning curves are drawn over


@dataclass(frozen=True)
class Point:
    """Success at one place of a run; `low` and `high` bound its 95 % interval, NaN if it is no evaluation."""

    stage: str
    step: int
    turns: float  # of all training episodes so far; NaN: not known
    seconds: float  # of all training steps so far, evaluations and restarts left out
    success: float
    low: float = math.nan
    high: float = math.nan
    episodes: int = 0
    missing: int = 0  # episodes that failures kept from finishing
    panel: str = ""  # name and digest; "": not known

    def at(self, axis: Axis) -> float:
        """Its place on an axis."""
        return float(getattr(self, axis))


@dataclass(frozen=True)
class Compared:
    """What is compared of a run."""

    name: str
    settings: Mapping[str, Any]  # by dotted key
    training: Sequence[Point] = ()
    evaluations: Sequence[Point] = ()
    outcomes: Mapping[str, Sequence[bool]] = field(default_factory=dict)  # of the last evaluation, by task
    plays: Plays = field(default_factory=dict)  # the same, with more of each
    tokens: Figure | None = None  # sampled in a play, in the last evaluation
    further: Sequence[Compared] = ()  # the last evaluation on each panel after the first

    @property
    def panel(self) -> str:
        """The panel of the last evaluation."""
        return self.evaluations[-1].panel if self.evaluations else ""

    def on(self, panel: str) -> Compared:
        """The last evaluation on a panel; on the first one if that panel is not among them."""
        return next((one for one in self.further if one.panel == panel), self)

    @property
    def curve(self) -> list[Point]:
        """The evaluations on its learning curve: without a warm start also the first one."""
        warm = [point for point in self.evaluations if point.stage != COLD]
        return warm if any(point.step == 0 for point in warm) else list(self.evaluations)


@dataclass(frozen=True)
class Difference:
    """Mean over tasks of the difference in success, with its 95 % interval."""

    tasks: int
    mean: float
    low: float
    high: float
    better: int  # tasks that the second run solves more often
    worse: int
    left_out: int = 0  # tasks that one of the runs did not finish


class Unpaired(ValueError):
    """Two evaluations cannot be paired by task; the message says why."""


def read_runs(paths: Sequence[Path]) -> list[Compared]:
    """The runs in these folders.

    Raises:
        RunFolderError: a folder holds no run.
    """
    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def read_run(path: Path, name: str) -> Compared:
    """What is compared of the run in a folder."""
    run = RunFolder(path)
    training, evaluations, turns, seconds = [], [], math.nan, 0.0
    last: dict[str, Any] = {}
    for row in run.metrics():
        if row["kind"] == "train":
            turns, seconds = row.get("rollout/turns_total", math.nan), seconds + row.get("time/step", 0.0)
            training.append(Point(TRAINING, row["step"], turns, seconds, row["rollout/success"]))
        elif row["kind"] == "eval":
            evaluations.append(_evaluation(row, seconds))
            last = row
    found = Compared(name, flat(run.config()), training, evaluations)
    if not last:
        return found
    others = list(last.get("panels", {}))[1:]
    further = [
        _played(replace(found, evaluations=[_evaluation(last, seconds, panel)]), run, last, panel)
        for panel in others
        if f"eval/{panel}/success" in last  # the one before the warm start has the first panel only
    ]
    return _played(replace(found, further=further), run, last)


def _played(found: Compared, run: RunFolder, row: Mapping[str, Any], panel: str = "") -> Compared:
    """With the episodes of an evaluation on a panel; no name: on the first one."""
    plays = plays_of(run.episodes(evaluation_key(row["step"], row.get("stage") or "", panel)))
    outcomes = {task: [play.success for play in own] for task, own in plays.items()}
    bounds = [f"{_topic(panel)}/{bound}tokens_per_play" for bound in ("", "low_", "high_")]
    known = all(row.get(key) is not None for key in bounds)
    tokens = Figure(*(row[key] for key in bounds)) if known else None
    return replace(found, outcomes=outcomes, plays=plays, tokens=tokens)


def _evaluation(row: Mapping[str, Any], seconds: float, panel: str = "") -> Point:
    figures = {name: row[f"{_topic(panel)}/{name}"] for name in ("success", "low", "high")}
    counts = {name: int(row.get(f"{_topic(panel)}/{name}", 0)) for name in ("episodes", "missing")}
    turns, digests = row.get("rollout/turns_total", math.nan), row.get("panels", {})
    own = panel or next(iter(digests), "")
    label = f"{own} ({digests[own]})" if own else ""
    return Point(row.get("stage") or "", row["step"], turns, seconds, **figures, **counts, panel=label)


def _topic(panel: str) -> str:
    return f"eval/{panel}" if panel else "eval"


def differing(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """The settings that differ, with each run's value; None where a run has no such setting."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in OWN)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: own for key, own in values.items() if any(value != own[0] for value in own)}


def difference(first: Compared, second: Compared) -> Difference:
    """How much more of the same tasks the second run solves in its last evaluation.

    Raises:
        Unpaired: the evaluations are not of the same tasks.
    """
    for run in (first, second):
        played = sum(map(len, run.outcomes.values()))
        results = run.evaluations[-1].episodes if run.evaluations else 0
        if not played or played != results:  # trials before one that a failure ended are on file, too
            raise Unpaired(
                f"{run.name} has {played} episodes for the {results} results of its last evaluation"
            )
    environments = [run.settings.get("env.name") for run in (first, second)]
    if environments[0] != environments[1]:
        raise Unpaired(f"{first.name} plays {environments[0]}, {second.name} {environments[1]}")
    panels = [run.evaluations[-1].panel for run in (first, second)]
    if all(panels) and panels[0] != panels[1]:
        raise Unpaired(f"{first.name} was evaluated on panel {panels[0]}, {second.name} on {panels[1]}")
    ours, theirs = first.outcomes, second.outcomes
    for run, absent in ((first, theirs.keys() - ours.keys()), (second, ours.keys() - theirs.keys())):
        if len(absent) > run.evaluations[-1].missing:
            raise Unpaired(
                f"{first.name} and {second.name} were evaluated on different tasks "
                f"({len(ours)} and {len(theirs)}, {len(ours.keys() & theirs.keys())} in common)"
            )
    both = [task for task in ours if task in theirs]
    if not both:
        raise Unpaired(f"{first.name} and {second.name} finished no task in common")
    gains = np.array([np.mean(theirs[task]) - np.mean(ours[task]) for task in both])
    low, high = bootstrap(gains)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    left_out = len(ours.keys() | theirs.keys()) - len(both)
    return Difference(len(both), float(gains.mean()), low, high, better, worse, left_out)


def gains(first: Compared, second: Compared) -> dict[str, Figure]:
    """How much higher each figure of the second run's last evaluation is, paired by task.

    Raises:
        Unpaired: as `difference`.
    """
    difference(first, second)
    return paired(first.plays, second.plays)


def on_panels(runs: Sequence[Compared]) -> list[list[Compared]]:
    """The runs on each panel of the first one's last evaluation, without those that were not evaluated on it.

    On its first panel all are there: `differences` says why one cannot be paired.
    """
    first = runs[0]
    found = [[run.on(first.panel) for run in runs]]
    for own in first.further:
        rest = [one for run in runs[1:] if (one := run.on(own.panel)).panel == own.panel]
        found.append([own, *rest])
    return found


def since_warm_start(out: Path) -> list[str]:
    """How the last evaluation of a run differs from the last one before RL, paired by task; in a line.

    No line if the run has not both. Its evaluations have the same seeds, so what differs is the policy.
    """
    folder, run = RunFolder(out), read_run(out, out.name)
    stages = [stage for stage in folder.steps() if not stage.training and not stage.panel]
    begun = [number for number, point in enumerate(run.evaluations) if point.step == 0]
    if not begun or run.evaluations[-1].step == 0 or len(stages) != len(run.evaluations):
        return []
    until = begun[-1] + 1
    plays = plays_of(folder.episodes(stages[until - 1].key))
    outcomes = {task: [play.success for play in own] for task, own in plays.items()}
    first, last = run.evaluations[until - 1].stage, run.evaluations[-1].stage
    before = replace(run, name=first, evaluations=run.evaluations[:until], outcomes=outcomes)
    return [f"{last} − {first}: {describe_difference(before, replace(run, name=last))}"]


def settings_table(runs: Sequence[Compared]) -> Table:
    """The settings that differ, a column per run."""
    table = _table("Settings that differ", "setting", *(run.name for run in runs))
    for key, values in differing(runs).items():
        table.add_row(key, *(str(value) for value in values))
    return table


def curve_table(runs: Sequence[Compared], axis: Axis) -> Table:
    """Success of evaluations along the axis, a column per run."""
    table = _table("Success of evaluations (95 % interval)", axis, *(run.name for run in runs))
    places = sorted({p.at(axis) for run in runs for p in run.curve if not math.isnan(p.at(axis))})
    for place in places:
        found = [[point for point in run.curve if point.at(axis) == place] for run in runs]
        table.add_row(f"{place:,.0f}", *(_rate(own[-1]) if own else "" for own in found))
    return table


def final_table(runs: Sequence[Compared]) -> Table:
    """The last evaluation of each run."""
    table = _table("Last evaluation", "run", "stage", "step", "success (95 % interval)", "episodes")
    for run in runs:
        if not run.evaluations:
            table.add_row(run.name, "none yet")
            continue
        last = run.evaluations[-1]
        count = f"{last.episodes} of {last.episodes + last.missing}" if last.missing else f"{last.episodes}"
        table.add_row(run.name, last.stage, f"{last.step}", _rate(last), count)
    return table


def figures_table(runs: Sequence[Compared]) -> Table:
    """What papers print of the last evaluation of each run; intervals are over tasks."""
    columns = [_figures(run) for run in runs]
    [panel, *others] = {run.panel for run in runs}
    on = f" on {panel}" if panel and not others else ""
    table = _table(f"Last evaluation{on}, by task (95 % interval)", "", *(run.name for run in runs))
    for name in dict.fromkeys(name for own in columns for name in own):
        table.add_row(name, *(own.get(name, "") for own in columns))
    return table


def gains_table(runs: Sequence[Compared]) -> Table:
    """How each figure differs from the first run's, paired by task, for runs that can be paired."""
    found: dict[str, dict[str, Figure]] = {}
    for run in runs[1:]:
        with suppress(Unpaired):  # `difference_lines` says why
            found[run.name] = gains(runs[0], run)
    table = _table(f"Difference from {runs[0].name} (95 % interval)", "", *found)
    for name in dict.fromkeys(name for own in found.values() for name in own):
        cells = (own.get(name) for own in found.values())
        table.add_row(printed(name), *(_interval(name, one, "+") if one else "" for one in cells))
    return table


def printed(name: str) -> str:
    """A figure's name as papers print it."""
    kind, _, k = name.rpartition("_at_" if "_at_" in name else "_hat_")
    sign = "@" if "_at_" in name else "^"
    own = {"avg": "Avg", "best": "Best"}.get(kind, kind)
    return f"{own}{sign}{k}" if kind else name.replace("_", " ")


def _figures(run: Compared) -> dict[str, str]:
    """The figures of a run as text, by their printed name."""
    told = all_figures(run.plays) | ({"tokens_per_play": run.tokens} if run.tokens else {})
    found = {printed(name): _interval(name, one) for name, one in told.items()}
    turns = run.evaluations[-1].turns if run.evaluations else math.nan
    return found | ({} if math.isnan(turns) else {"training turns": f"{turns:,.0f}"})


def _interval(name: str, one: Figure, sign: str = "") -> str:
    """A figure with its interval: shares and scores in points of 100, as papers print them."""
    factor, form = (1, ",.1f") if name in ("turns", "tokens_per_play") else (100, ".1f")
    mean, low, high = (f"{factor * value:{sign}{form}}" for value in (one.mean, one.low, one.high))
    return f"{mean} ({low} to {high})"


def difference_lines(runs: Sequence[Compared]) -> list[str]:
    """How the last evaluation of each run differs from the first run's, paired by task; a line each."""
    return [f"{run.name} − {runs[0].name}: {describe_difference(runs[0], run)}" for run in runs[1:]]


def describe_difference(first: Compared, second: Compared) -> str:
    """The paired difference, or why there is none."""
    try:
        found = difference(first, second)
    except Unpaired as reason:
        return f"not paired: {reason}"
    left_out = f", {found.left_out} left out" if found.left_out else ""
    return (
        f"{100 * found.mean:+.1f} points (95 % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}) "
        f"on {found.tasks} tasks: {found.better} better, {found.worse} worse{left_out}"
    )


def write_csv(runs: Sequence[Compared], file: Path) -> None:
    """Every point of every run, evaluations before training steps; what is not known is empty."""
    columns = ("stage", "step", "turns", "seconds", "success", "low", "high", "episodes", "missing")
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(("run", *columns))
        for run in runs:
            for point in (*run.evaluations, *run.training):
                values = [getattr(point, name) for name in columns]
                unknown = [isinstance(value, float) and math.isnan(value) for value in values]
                cells = ["" if absent else value for value, absent in zip(values, unknown, strict=True)]
                writer.writerow((run.name, *cells))


def plot_success(runs: Sequence[Compared], axis: Axis, file: Path) -> None:
    """Success of evaluations with its intervals, and faintly that of the training episodes, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), dpi=130)
    for index, run in enumerate(runs):
        color, points = f"C{index}", run.curve
        axes.plot(
            [point.at(axis) for point in run.training],
            [point.success for point in run.training],
            color=color, alpha=0.25, linewidth=1,
            marker="o" if len(run.training) == 1 else "",  # a line of one point is invisible
        )  # fmt: skip
        axes.errorbar(
            [point.at(axis) for point in points],
            [point.success for point in points],
            yerr=[[p.success - p.low for p in points], [p.high - p.success for p in points]],
            fmt="o-", color=color, capsize=4, label=run.name,
        )  # fmt: skip
    axes.set(xlabel=f"training {axis}", ylabel="success", ylim=(0, 1))
    axes.set_title("evaluations, 95 % interval; faint: training rollouts", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def _rate(point: Point) -> str:
    return f"{point.success:.1%} ({point.low:.1%} to {point.high:.1%})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table
