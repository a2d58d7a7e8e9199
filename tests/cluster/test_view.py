"""What is printed, on a terminal and elsewhere, and kept in log.txt and status.json."""

from __future__ import annotations

import io
import json
import re
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.table import Table
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.cluster.evaluate import Evaluation
from hindsight.cluster.failures import Interrupted
from hindsight.cluster.memory import Need
from hindsight.cluster.plan import Place, Plan
from hindsight.cluster.report.text import PlainConsole, clock, duration, one_line, visible
from hindsight.cluster.step_report import excerpt, nothing_trained, played_line, trained_line
from hindsight.cluster.view import View, draw_curve, evaluation_table, success_on
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config

HOSTILE = "mygym:Family :smile: [bold]x[/bold] [/red] \x1b[31mred\x07 \u202eevil"
SHOWN = "mygym:Family :smile: [bold]x[/bold] [/red] \\x1b[31mred\\x07 \\u202eevil"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # what rich writes to a terminal


def terminal() -> tuple[View, io.StringIO]:
    """A view on a terminal of 80 columns."""
    file = io.StringIO()
    return View(PlainConsole(file=file, force_terminal=True, width=80)), file


def screen(text: str) -> list[str]:
    """What is left on a terminal that has printed it: lines, erased lines, and a cursor that goes up."""
    rows, at = [""], 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n|\r)", text):
        if piece == "\n":
            at += 1
            rows += [""] * (at == len(rows))
        elif up := re.fullmatch(r"\x1b\[(\d+)A", piece):
            at -= int(up[1])
        elif piece == "\x1b[2K":
            rows[at] = ""
        elif piece != "\r" and not piece.startswith("\x1b["):
            rows[at] += piece
    return rows


def group(informative: bool) -> Any:
    return SimpleNamespace(informative=informative, group=SimpleNamespace(trajectories=()))


def test_texts_are_never_read_as_markup(tmp_path: Path) -> None:
    file = io.StringIO()
    view = View(PlainConsole(file=file, width=80))
    view.keep(tmp_path)
    table = Table(title=HOSTILE)
    table.add_column("a\x1b")
    table.add_row(":smile: [bold]")
    view.say(HOSTILE)
    view.show(":smile: [/red] \x1b[31m")
    view.show(table)
    view.show(evaluation_table([Evaluation(":smile:[/x]", 1, 4, 0.5, 0.1, 0.9, 3.0)]))
    assert SHOWN in file.getvalue() and ":smile: [/red]" in file.getvalue()
    assert "\x1b" not in file.getvalue() and ":smile: [bold]" in file.getvalue()
    assert ":smile:[/x]" in file.getvalue() and "\N{SMILING FACE WITH OPEN MOUTH}" not in file.getvalue()
    log = (tmp_path / "log.txt").read_text()
    assert SHOWN in log and ":smile:[/x]" in log and not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)


def test_errors_are_never_read_as_markup() -> None:
    for command in (["config", "nano", "env.name=my:smile:[/red]"], ["envs", "check", "my:smile:[/red]"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1 and "my:smile:[/red]" in done.output, done.output


def test_a_plan_is_never_read_as_markup() -> None:
    file = io.StringIO()
    view = View(PlainConsole(file=file, width=80))
    place = Place(":smile:", 0, 1.0, 0.0, Need({"[/red]": 1.0}))
    view.plan(Plan(Config(), ({"CPU": 1.0},), (place,), 0, 0.0))
    assert ":smile:" in file.getvalue() and "[/red] 1.0" in file.getvalue()


def test_without_a_terminal_an_event_is_one_line() -> None:
    file = io.StringIO()
    View(PlainConsole(file=file, width=80)).say("word " * 60)
    assert len(file.getvalue().splitlines()) == 1


def test_nothing_is_wider_than_the_terminal_and_no_bar_stays() -> None:
    view, file = terminal()
    with view:
        view.phase("starting actors")
        with view.starting("engine (2)", "vLLM: loading the model, compiling it, and whatever it may be"):
            view.console.print(view._screen())
        view.phase("RL " * 30, 1_000_000, 999_999)
        view.now(f"rolling out and scoring {HOSTILE} " * 3, 123_456, 1_000_000)
        view.progress.ends = time.time() + 1e6
        with view.within("evaluation during RL", 10_000):
            view.advance(1, 10_000)
            view.console.print(view._screen())
        view.say("word " * 60 + "unbreakable" * 20)
        view.say("\n".join(excerpt(episode(30, "\u65e5\u672c" * 100))))
        assert view.live is not None
        view.live.refresh()
        assert any("in flight" in line or "RL RL" in line for line in screen(file.getvalue())[-4:])
    left = screen(file.getvalue())
    assert max(map(cell_len, ESCAPES.sub("", file.getvalue()).splitlines())) <= 80
    assert "".join("".join(left).split()).count("unbreakable") == 20  # folded, not cut
    assert any("loading the model" in line for line in left)
    assert not any("RL RL" in line for line in left[-2:]) and left[-1] == ""  # no bar stays


def test_what_a_step_trained() -> None:
    config = load_config("nano", ["method=serl", "steps=9"])
    values = {
        "learner/samples": 24.0,
        "learner/tokens": 5120.0,
        "learner/loss": 0.0312,
        "learner/strength": 0.5,
    }
    said = trained_line(3, values | {"learner/teacher_tokens": 12.0}, [group(True), group(False)], config)
    assert said.startswith("step 3 trained on 24 samples (5,120 tokens), 1 of 2 groups with an advantage: ")
    assert "loss 0.0312" in said and "teacher weighs 12 tokens with λ = 0.50" in said
    distilled = trained_line(3, values | {"learner/strength": 0.0, "learner/signal_tokens": 7.0}, [], config)
    assert "7 tokens distilled" in distilled and "λ" not in distilled
    nothing = trained_line(3, {"learner/samples": 0.0}, [group(False)], Config(steps=9))
    assert nothing == ("step 3 trained nothing: all returns in every group were equal: nothing to learn from")
    played = played_line(1, 9, {"rollout/malformed": 0.125, "rollout/reward": 0.5, "time/learner": 3.0})
    assert "12% malformed" in played and "reward 0.50" in played and "learner 3.0" in played


def test_a_run_that_trained_nothing_says_so() -> None:
    empty = {"kind": "train", "learner/samples": 0.0}
    assert "None of the 2 steps trained anything" in nothing_trained([empty, empty, {"kind": "eval"}])[0]
    assert nothing_trained([empty, empty | {"learner/samples": 1.0}]) == nothing_trained([]) == []


def episode(turns: int, text: str) -> dict[str, Any]:
    turn = {"observation": text, "response": text, "action": "go", "valid": True}
    return {"task": text, "success": False, "reward": 0.0, "ended": "truncated", "turns": [turn] * turns}


@pytest.mark.parametrize("turns", [1, 2, 9, 10, 50])
def test_an_episode_in_short(turns: int) -> None:
    shown = excerpt(episode(turns, HOSTILE * 9), width=72, most=20)
    assert len(shown) <= 20 and max(map(cell_len, shown)) <= 72 and not any("\x1b" in line for line in shown)
    assert shown[1].startswith("   1 sees mygym:Family") and shown[2].startswith("     says mygym")
    left_out = [int(found) for found in re.findall(r"… (\d+) turns", "\n".join(shown))]
    assert sum("sees" in line for line in shown) + sum(left_out) == turns


def test_log_and_status_end_in_the_state_of_the_run(tmp_path: Path) -> None:
    def ended(error: Exception | None) -> dict[str, Any]:
        with (
            pytest.raises(type(error)) if error else nullcontext(),
            View(PlainConsole(file=io.StringIO())) as view,
        ):
            view.say("before the folder is known")
            view.keep(tmp_path)
            view.phase("RL", 10, 3)
            view.reach(3, 10)
            if error:
                raise error
        status: dict[str, Any] = json.loads((tmp_path / "status.json").read_text())
        return status

    assert ended(None)["outcome"] == "finished"
    assert ended(Interrupted(15))["outcome"] == "stopped"
    status = ended(ValueError(":smile: \x1b"))
    assert (status["outcome"], status["phase"], status["step"], status["steps"]) == ("failed", "RL", 3, 10)
    log = (tmp_path / "log.txt").read_text().splitlines()  # appended to
    assert [line[21:] for line in log] == [
        *("before the folder is known", "finished"),
        *("before the folder is known", "stopped: stopped by SIGTERM"),
        *("before the folder is known", "failed: :smile: \\x1b"),
    ]


def test_the_status_is_written_while_nothing_is_said(tmp_path: Path) -> None:
    with View(PlainConsole(file=io.StringIO())) as view:
        view.keep(tmp_path)
        view.now("updating")
        until = time.monotonic() + 20
        while time.monotonic() < until and not (tmp_path / "status.json").exists():
            time.sleep(0.05)
        status = json.loads((tmp_path / "status.json").read_text())
    assert (
        status["doing"] == "updating" and status["outcome"] is None and abs(status["time"] - time.time()) < 60
    )


def test_texts_that_could_control_a_terminal() -> None:
    assert visible(HOSTILE) == SHOWN and visible("a\tb\n\ud800") == "a\tb\n\\ud800"
    assert one_line("a\n b " + "\u65e5" * 10, 9) == "a b \u65e5\u65e5…"
    assert [duration(s) for s in (0.31, 42, 59.7, 3540, 3600, 7800, 90000, 172800)] == [
        *("0.3 s", "42 s", "1 min", "59 min", "1 h", "2 h 10 min", "1 d 1 h", "2 d"),
    ]  # fmt: skip
    assert [clock(s) for s in (5.9, 65, 3723)] == ["0:05", "1:05", "1:02:03"]


def test_the_curve_of_one_step_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    for steps in (1, 2):
        rows = [{"kind": "train", "step": step, "rollout/success": 0.5} for step in range(1, steps + 1)]
        draw_curve(rows, [], tmp_path / "curve.png", "title")
    markers = [figure.axes[0].lines[0].get_marker() for figure in drawn]
    monkeypatch.undo()
    for figure in drawn:
        pyplot.close(figure)
    assert markers == ["o", ""]


def test_only_training_tasks_are_not_called_held_out() -> None:
    assert success_on([]) == success_on(["evaluation"]) == "Held-out success"
    assert success_on(["training", "training"]) == "Success on training tasks"
    assert success_on(["training", "evaluation"]) == "Success"
