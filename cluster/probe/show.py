"""A probe as tables, as a picture, and as files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from hindsight.cluster.outcomes import Figure
from hindsight.cluster.probe.figures import Probed, ProbeRow, sentence
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.text import PlainConsole

JSON, ROWS, TEXT, PICTURE = "probe.json", "pairs.jsonl", "table.txt", "probe.png"
WIDTH = 100  # columns of table.txt
OFTEN = "share of pairs in which the hint shifts the better action further up"
FAR = "shift of the better minus that of the worse action (nats per token)"


@dataclass(frozen=True)
class Result:
    """Everything that a probe has found."""

    model: str
    env: str
    method: str
    played: str  # what the pairs are from
    found: Sequence[Probed]
    rows: Sequence[ProbeRow]
    left_out: Mapping[str, str] = field(default_factory=dict)  # task -> why it gave no pair
    notes: Sequence[str] = ()

    @property
    def sentences(self) -> list[str]:
        """The verdict on each feedback."""
        return [sentence(one, self.model, self.env) for one in self.found]

    @property
    def title(self) -> str:
        """What was probed, in a line."""
        return f"{self.model} in {self.env}, {self.played}"


def result_table(result: Result) -> Table:
    """A row for each feedback: shares in %, margins in nats per token, 95 % intervals over tasks."""
    made = Table(
        title=result.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    made.add_column("feedback")
    for name in ("likelier", "shift\nprefers", "control", "own −\ncontrol", "margin", "clipped"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in result.found:
        figures = one.figures
        made.add_row(
            one.feedback,
            f"{_share(figures.get('without'))} → {_share(figures.get('with'))}",
            _interval(figures.get("shift"), ".0f"),
            _share(figures.get("other_shift")),
            _interval(figures.get("content"), "+.0f"),
            _interval(figures.get("margin"), "+.2f", factor=1),
            _share(figures.get("clipped")),
        )
    return made


def lines_below(result: Result) -> Iterator[str]:
    """What goes below the table."""
    yield (
        "likelier: the better action, without → with its hint (% of pairs). shift prefers: the hint moves it "
        "further up than the worse one (% of pairs). control: the same with a hint of another task. margin: "
        "how much further (nats per token). clipped: % of tokens. Intervals: 95 %, over tasks."
    )
    for one in result.found:
        if "lead_with" in one.figures:
            without, shown = (_lead(one.figures[name]) for name in ("lead_without", "lead_with"))
            led = f"the better action leads by {without} nats per token, with its hint by {shown}"
            yield f"“{one.feedback}”, {one.tasks} tasks: {led}"
    yield from result.sentences
    yield from result.notes
    reasons: dict[str, list[str]] = {}
    for task, why in result.left_out.items():
        reasons.setdefault(why, []).append(task)
    for why, tasks in reasons.items():
        yield f"left out, {len(tasks)} tasks ({', '.join(tasks[:3])}{', …' if tasks[3:] else ''}): {why}"


def write_result(result: Result, folder: Path) -> None:
    """Write the figures, the scores of each pair, the table and the picture."""
    about: dict[str, Any] = {name: getattr(result, name) for name in ("model", "env", "method", "played")}
    found = [{**asdict(one), "verdict": one.verdict.value} for one in result.found]
    told = {"feedback": found, "left_out": dict(result.left_out), "notes": list(result.notes)}
    (folder / JSON).write_text(json.dumps(about | told, indent=1, ensure_ascii=False) + "\n")
    write_rows(folder / ROWS, [asdict(row) for row in result.rows])
    with (folder / TEXT).open("w", encoding="utf-8") as file:
        console = PlainConsole(file=file, width=WIDTH)
        console.print(result_table(result))
        for line in lines_below(result):
            console.print(line, soft_wrap=True)
    _draw(result, folder / PICTURE)


def _draw(result: Result, file: Path) -> None:
    """How often, and how far, hints move the model toward the better action, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (11, 1.5 + 0.45 * max(1, len(result.found)))
    figure, both = pyplot.subplots(1, 2, figsize=size, dpi=130, sharey=True)
    for axes, measure, middle, label in zip(both, ("shift", "margin"), (0.5, 0.0), (OFTEN, FAR), strict=True):
        axes.axvline(middle, color="0.6", linewidth=1)
        axes.grid(axis="x", alpha=0.25)
        axes.set_xlabel(label, fontsize=8)
        _draw_intervals(axes, result.found, measure, "C0", -0.12, "its own hint")
        _draw_intervals(axes, result.found, f"other_{measure}", "C7", 0.12, "a hint of another task")
    both[0].set(xlim=(0, 1))
    both[0].set_yticks(range(len(result.found)), [one.feedback for one in result.found], fontsize=8)
    both[0].invert_yaxis()
    both[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result.title}; 95 % intervals over tasks", fontsize=9)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def _draw_intervals(
    axes: Any, found: Sequence[Probed], measure: str, color: str, offset: float, label: str
) -> None:
    """A figure of each feedback, on a line of its own."""
    known = [(place, one.figures[measure]) for place, one in enumerate(found) if measure in one.figures]
    # Sums of floats may put a mean a rounding error outside of its interval.
    below = [max(0.0, one.mean - one.low) for _, one in known]
    above = [max(0.0, one.high - one.mean) for _, one in known]
    axes.errorbar(
        [one.mean for _, one in known],
        [place + offset for place, _ in known],
        xerr=[below, above],
        fmt="o", markersize=4, color=color, capsize=3, label=label,
    )  # fmt: skip


def _share(one: Figure | None) -> str:
    return "–" if one is None else f"{100 * one.mean:.0f}"


def _lead(one: Figure) -> str:
    return f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f})"


def _interval(one: Figure | None, form: str, factor: int = 100) -> str:
    if one is None:
        return "–"
    mean, low, high = (f"{factor * value:{form}}" for value in (one.mean, one.low, one.high))
    return f"{mean}\n{low} to {high}"
