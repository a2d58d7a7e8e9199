"""What the user sees: live progress, the closing table, the learning curve."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hindsight.cluster.evaluate import Evaluation, Stage
from hindsight.cluster.plan import Plan
from hindsight.cluster.planning import plan_notes, plan_table

PHASES = ("rollout", "feedback_and_teacher", "learner", "weight_sync")


class View:
    """A live display on a terminal; otherwise one plain line per event."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.live: Live | None = None
        self.progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self.task = self.progress.add_task("starting", total=None)
        self.part = self.progress.add_task("", total=None, visible=False)
        self.latest = Table.grid()
        self.started = time.monotonic()

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self.live = Live(self._screen(), console=self.console, refresh_per_second=4)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def say(self, text: str) -> None:
        """Print one line."""
        seconds = time.monotonic() - self.started
        self.console.print(f"[dim]{seconds:6.0f} s[/dim]  {escape(text)}", highlight=False)

    def plan(self, made: Plan) -> None:
        """Print who runs where."""
        self.console.print(plan_table(made))
        for note in plan_notes(made):
            self.say(note)

    def phase(self, name: str, total: int | None, done: int = 0) -> None:
        """Start a phase, shown as a bar."""
        self.progress.reset(self.task, description=name, total=total, completed=done)

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Show the current activity as a second bar."""
        self.progress.update(self.part, description=doing, completed=done, total=total, visible=True)

    def advance(self, done: int, total: int) -> None:
        """Advance the first bar."""
        self.progress.update(self.task, completed=done, total=total)
        self._refresh()

    def sft(self, step: int, steps: int, stats: dict[str, float]) -> None:
        """Show one update of the warm start."""
        self.advance(step, steps)
        if step == steps or step % max(1, steps // 10) == 0:
            rate = stats["tokens_read"] / stats["seconds"]
            self.say(f"warm start {step}/{steps}  loss {stats['loss']:.3f}  {rate:.0f} tokens/s")

    def step(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Show one training step."""
        self.advance(step, steps)
        self.latest = step_table(step, values)
        self._refresh()
        seconds = "  ".join(f"{phase} {values.get(f'time/{phase}', 0.0):.1f}" for phase in PHASES)
        self.say(
            f"step {step}/{steps}  success {values.get('rollout/success', 0.0):.2f}  "
            f"turns {values.get('rollout/turns_per_episode', 0.0):.1f}  "
            f"{values.get('rollout/tokens_per_second', 0.0):.0f} tokens/s  s: {seconds}"
        )

    def _screen(self) -> Group:
        return Group(self.latest, self.progress)

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self._screen())


def step_table(step: int, values: dict[str, float]) -> Table:
    """The newest metrics, one column each."""
    shown = {
        "step": f"{step}",
        "success": f"{values.get('rollout/success', 0.0):.2f}",
        "reward": f"{values.get('rollout/reward', 0.0):.2f}",
        "turns / episode": f"{values.get('rollout/turns_per_episode', 0.0):.1f}",
        "tokens / s": f"{values.get('rollout/tokens_per_second', 0.0):.0f}",
        "mismatch KL": f"{values.get('learner/mismatch_kl', float('nan')):.4f}",
        **{f"{phase} s": f"{values.get(f'time/{phase}', 0.0):.1f}" for phase in PHASES},
    }
    table = Table(box=None, pad_edge=False)
    for name in shown:
        table.add_column(name, justify="right", style="cyan")
    table.add_row(*shown.values())
    return table


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """Held-out success per stage, with intervals, after each trial. Fits 80 columns."""
    read, written = (sum(getattr(e, f"tokens_{what}") for e in evaluations) for what in ("read", "written"))
    caption = f"{read:,} prompt tokens, {written:,} generated"
    table = Table(title="Held-out success", caption=caption, box=box.SIMPLE, pad_edge=False)
    for name in ("stage", "step", "success", "95 % interval", "episodes", "turns", "s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for e in evaluations:
        earlier = e.after_trials()[:-1]
        for trial, (success, low, high) in enumerate(earlier, start=1):
            first = (f"{e.stage}, trial {trial}", str(e.step), f"{success:.1%}", f"{low:.1%} to {high:.1%}")
            table.add_row(*first, str(e.episodes))
        stage = f"{e.stage}, trial {len(earlier) + 1}" if earlier else e.stage
        interval = f"{e.low:.1%} to {e.high:.1%}"
        episodes = f"{e.episodes} of {e.episodes + e.missing}" if e.missing else str(e.episodes)
        figures = (episodes, f"{e.turns:.1f}", f"{e.seconds:.0f}")
        table.add_row(stage, str(e.step), f"{e.success:.1%}", interval, *figures)
    return table


def cost_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What teacher and judge cost the run, from its metrics; empty if they were not asked."""
    steps = [row for row in rows if row["kind"] == "train"]

    def cost(name: str, form: str = ",.0f") -> str:
        whole = sum(row.get(name, 0.0) for row in steps)
        return f"{whole:{form}} ({whole / len(steps):{form}} a step)"

    def asked(name: str) -> bool:
        return any(row.get(name) for row in steps)

    lines = []
    if asked("teacher/spans"):
        lines.append(
            f"teacher: {cost('teacher/spans')} spans of {cost('teacher/span_tokens')} tokens scored, "
            f"{cost('teacher/tokens')} tokens read, busy for {cost('teacher/seconds_busy', ',.1f')} s"
        )
    if asked("feedback/asked"):
        lines.append(
            f"judge: {cost('feedback/asked')} questions, {cost('feedback/tokens_read')} tokens read, "
            f"{cost('feedback/tokens_written')} written"
        )
    return lines


def draw_curve(
    rows: Sequence[dict[str, Any]], evaluations: Sequence[Evaluation], path: Path, title: str
) -> None:
    """The learning curve: training success per step and held-out success with its intervals, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), dpi=130)
    train = [
        (row["step"], row["rollout/success"])
        for row in rows
        if row["kind"] == "train" and "rollout/success" in row
    ]
    if train:
        steps, success = zip(*train, strict=True)
        axes.plot(steps, success, color="#9db7d5", linewidth=1, label="training rollouts")
        width = max(1, len(success) // 15)
        means = [
            sum(success[max(0, i - width) : i + 1]) / len(success[max(0, i - width) : i + 1])
            for i in range(len(success))
        ]
        axes.plot(steps, means, color="#1f5a96", linewidth=2, label=f"mean of {width + 1} steps")
    trained = [e for e in evaluations if e.stage != Stage.BEFORE_SFT]
    if trained:
        axes.errorbar(
            [e.step for e in trained],
            [e.success for e in trained],
            yerr=[[e.success - e.low for e in trained], [e.high - e.success for e in trained]],
            fmt="o", color="#c2410c", capsize=4, label="held-out, 95 % interval",
        )  # fmt: skip
    axes.set(xlabel="training step", ylabel="success", ylim=(0, 1), title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
