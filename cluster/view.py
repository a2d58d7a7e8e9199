"""What the user sees: the live display, one line per event, the closing table, the learning curve.

The same lines are in `log.txt` of the run's folder; `status.json` has what the live display shows.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from hindsight.cluster.evaluate import Evaluation, Stage, first_panel
from hindsight.cluster.failures import Interrupted
from hindsight.cluster.plan import Plan
from hindsight.cluster.planning import plan_notes, plan_table
from hindsight.cluster.progress import Progress, evaluations_left
from hindsight.cluster.report.record import episode_row
from hindsight.cluster.report.run_folder import STATUS
from hindsight.cluster.report.text import PlainConsole, clock, duration, visible
from hindsight.cluster.step_report import (
    EPISODE_EVERY,
    evaluation_seconds,
    excerpt,
    played_line,
    trained_line,
)
from hindsight.configs.schema import Config
from hindsight.envs.base import TRAINING
from hindsight.envs.runtime.files import atomic_write
from hindsight.learner.samples import SampleGroup

LOG = "log.txt"
WIDTH = 80  # columns of tables in log.txt
HEARTBEAT = 10.0  # seconds after which status.json is written again although nothing has changed


class View:
    """A live display on a terminal; otherwise one plain line per event. Texts are never read as markup."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainConsole()
        self.progress = Progress()
        self.live: Live | None = None
        self.folder: Path | None = None  # of log.txt and status.json
        self.started = time.monotonic()
        self._kept: list[str] = []  # for log.txt, until there is a folder
        self._left = threading.Event()
        self._beating = threading.Thread(target=self._keep_status, daemon=True)
        self._written: dict[str, Any] = {}  # the last status.json

    def __enter__(self) -> View:
        if self.console.is_terminal:
            self.live = Live(
                get_renderable=self._screen, console=self.console, refresh_per_second=4, transient=True
            )
            self.live.start()
        self._beating.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._beating.join()
        if self.live is not None:
            self.live.stop()
            self.live = None
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        self.progress.outcome = "stopped" if stopped else "failed" if error else "finished"
        with suppress(OSError):  # a disk that is full may be why the run ends, and then that is reported
            self._log(f"{self.progress.outcome}: {error or type(error).__name__}" if error else "finished")
            self._write_status()

    def keep(self, folder: Path) -> None:
        """From now on write `log.txt` and `status.json` there, with what has been said so far."""
        if self.folder is None:
            self.folder = folder
            with (folder / LOG).open("a", encoding="utf-8") as file:
                file.writelines(self._kept)

    def say(self, text: str) -> None:
        """Print an event: one line, or several that belong together."""
        text = visible(text)
        seconds = f"{time.monotonic() - self.started:6.0f} s  "
        if self.console.is_terminal:
            row = Table.grid(Column(no_wrap=True), Column(overflow="fold"))
            row.add_row(Text(seconds, "dim"), Text(text))  # further lines are indented
            self.console.print(row)
        else:
            self.console.print(Text(seconds + text.replace("\n", "\n" + " " * len(seconds))), soft_wrap=True)
        self._log(text)

    def show(self, what: RenderableType) -> None:
        """Print a table or a text."""
        self.console.print(what, soft_wrap=isinstance(what, str) and not self.console.is_terminal)
        plain = io.StringIO()
        PlainConsole(file=plain, width=WIDTH).print(what, soft_wrap=isinstance(what, str))
        self._log(plain.getvalue().strip("\n"))

    def plan(self, made: Plan) -> None:
        """Print who runs where."""
        self.show(plan_table(made))
        for note in plan_notes(made):
            self.say(note)

    def reach(self, step: int, steps: int) -> None:
        """Note how many steps are finished."""
        self.progress.step, self.progress.steps = step, steps

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Start a phase, with a clock and a bar of its own."""
        self.progress.begin(name, total, done)

    def within(self, name: str, total: int | None = None) -> AbstractContextManager[None]:
        """A phase inside the current one."""
        return self.progress.within(name, total)

    @contextmanager
    def starting(self, what: str, does: str | Callable[[], str]) -> Iterator[None]:
        """Show that something starts, what it does (a function says what now), and when it is ready."""
        with self.progress.starting(what, does) as took:
            yield
            self.say(took())

    def playing(self, episodes: int) -> AbstractContextManager[None]:
        """Show that these episodes are in flight."""
        return self.progress.playing(episodes)

    def now(self, doing: str, done: int = 0, total: int | None = None) -> None:
        """Show the current activity."""
        self.progress.now(doing, done, total)

    def advance(self, done: int, total: int) -> None:
        """Advance the bar of the phase."""
        self.progress.advance(done, total)

    def sft(self, step: int, steps: int, stats: dict[str, float]) -> None:
        """Show one update of the warm start."""
        self.advance(step, steps)
        self.now("updating")
        if step == steps or step % max(1, steps // 10) == 0:
            rate = stats["tokens_read"] / stats["seconds"]
            self.say(f"warm start {step}/{steps}  loss {stats['loss']:.3f}  {rate:.0f} tokens/s")

    def step(
        self,
        step: int,
        config: Config,
        values: dict[str, float],
        batch: Sequence[SampleGroup],
        evaluations: Sequence[Evaluation],
    ) -> None:
        """Show a training step: how it went, what it trained, what is left, sometimes one of its episodes."""
        settings = config.evaluate
        follow = evaluations_left(step, config.steps, settings.every) if settings.episodes else 0
        each = evaluation_seconds(config, evaluations, values)
        forecast = self.progress.stepped(step, config.steps, follow, each)
        self.say(played_line(step, config.steps, values))
        self.say(f"{trained_line(step, values, batch, config)}; {forecast}")
        if step == 1 or step % EPISODE_EVERY == 0:
            episodes = [trajectory for group in batch for trajectory in group.group.trajectories]
            number = step % len(episodes)
            self.say("\n".join(excerpt(episode_row(episodes[number], number))))

    def _screen(self) -> Table:
        return _draw(self.progress)

    def _log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S  ")
        lines = "".join(f"{stamp}{line.rstrip()}\n" for line in visible(text).split("\n") if line.strip())
        if self.folder is None:
            self._kept.append(lines)
            return
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(lines)

    def _keep_status(self) -> None:
        """Write status.json once a second, if something has changed, and as a sign of life."""
        while not self._left.wait(1.0):
            with suppress(OSError):  # whatever else the run writes there fails as well, and is reported
                self._write_status()

    def _write_status(self) -> None:
        status, before = self.progress.status(), self._written
        changed = {**before, "time": 0} != {**status, "time": 0}
        if self.folder is not None and (changed or status["time"] - before["time"] > HEARTBEAT):
            atomic_write(self.folder / STATUS, json.dumps(status) + "\n")
            self._written = status


def _draw(progress: Progress) -> Table:
    """The live display: a line for each phase that runs, the activity, and what a start waits for."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in ("name", "bar", "count", "clock", "left"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=30 if name == "name" else None)
    now, clocks, ends, running = progress.clock(), progress.clocks(), progress.ends, progress.phase
    for index, (phase, at) in enumerate(clocks):
        left = phase.left(at)
        if index == 0 and ends is not None:
            left = max(0.0, ends - now)
        outlook = f"about {duration(left)} left" if left is not None else ""
        bar = ProgressBar(phase.total, phase.done, width=16, pulse=phase.total is None, animation_time=now)
        count = "" if phase.total is None else f"{phase.done}/{phase.total}"
        table.add_row(Text(phase.name, "bold"), bar, count, clock(now - phase.since), outlook)
    if running is None or progress.doing != running.name:
        count = "" if progress.total is None else f"{progress.done}/{progress.total}"
        flying = f"{progress.in_flight} in flight" if progress.in_flight else ""
        table.add_row(Text(visible(progress.doing)), flying, count, clock(now - progress.since), "")
    for what, does, since in progress.waiting():
        table.add_row(Text(f"  {what}", "cyan"), Text(visible(does), "dim"), "", clock(now - since), "")
    return table


def evaluation_table(evaluations: Sequence[Evaluation]) -> Table:
    """Success per stage, with intervals, after each trial. Fits 80 columns."""
    read, written = (sum(getattr(e, f"tokens_{what}") for e in evaluations) for what in ("read", "written"))
    caption = f"{read:,} prompt tokens, {written:,} generated"
    title = success_on({e.panel for e in evaluations})
    table = Table(title=title, caption=caption, box=box.SIMPLE, pad_edge=False)
    for name in ("stage", "step", "success", "95 % interval", "episodes", "turns", "s"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for e in evaluations:
        earlier = e.after_trials()[:-1]
        for trial, (success, low, high) in enumerate(earlier, start=1):
            first = (f"{e.stage}, trial {trial}", str(e.step), f"{success:.1%}", f"{low:.1%} to {high:.1%}")
            table.add_row(*first, str(e.episodes))
        stage = f"{e.stage}, trial {len(earlier) + 1}" if earlier else e.stage
        stage += f", {e.panel}" if e.panel not in ("", first_panel(evaluations)) else ""
        interval = f"{e.low:.1%} to {e.high:.1%}"
        episodes = f"{e.episodes} of {e.episodes + e.missing}" if e.missing else str(e.episodes)
        figures = (episodes, f"{e.turns:.1f}", f"{e.seconds:.0f}")
        table.add_row(stage, str(e.step), f"{e.success:.1%}", interval, *figures)
    return table


def success_on(panels: Collection[str]) -> str:
    """What the success on panels is: only that on training tasks is not held out."""
    if TRAINING not in panels:
        return "Held-out success"
    return "Success on training tasks" if set(panels) == {TRAINING} else "Success"


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
    """The learning curve: success of training rollouts per step and of evaluations, with intervals; a PNG."""
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
        dot = "o" if len(success) == 1 else ""  # a line of one point is invisible
        axes.plot(steps, success, color="#9db7d5", linewidth=1, marker=dot, label="training rollouts")
        width = max(1, len(success) // 15)
        means = [
            sum(success[max(0, i - width) : i + 1]) / len(success[max(0, i - width) : i + 1])
            for i in range(len(success))
        ]
        axes.plot(steps, means, color="#1f5a96", linewidth=2, label=f"mean of {width + 1} steps")
    shown = ("", first_panel(evaluations))
    trained = [e for e in evaluations if e.stage != Stage.BEFORE_SFT and e.panel in shown]
    if trained:
        axes.errorbar(
            [e.step for e in trained],
            [e.success for e in trained],
            yerr=[[e.success - e.low for e in trained], [e.high - e.success for e in trained]],
            fmt="o", color="#c2410c", capsize=4,
            label=f"{success_on({e.panel for e in trained}).lower()}, 95 % interval",
        )  # fmt: skip
    axes.set(xlabel="training step", ylabel="success", ylim=(0, 1), title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
