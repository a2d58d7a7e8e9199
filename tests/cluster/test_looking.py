"""`hindsight show` and `hindsight top`: what they say of a folder, alive, dead, hostile or old."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from hindsight.cluster.cli import app
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.run_folder import RunStage
from hindsight.cluster.report.show import level, paint, stage_label, token_values
from hindsight.cluster.report.text import PlainConsole
from hindsight.cluster.report.top import SILENT, state, status_lines

EVIL = "\x1b]0;owned\x07 :smile: [bold red]x[/] \u202e"
ROW = {
    "tokens": ["go", " to", " bed\n", "\x1b[2J", "<end>"],
    "advantage": [0.5] * 5,
    "rollout_logprob": [-0.1, -3.0, -6.0, -0.1, None],
    "teacher_logprob": [-0.05, -0.5, -9.0, None, None],
    "weight": [1.01, 1.6, 0.25, None, 0.0],
    "share": [0.1, 0.1, 0.1, 0.1, 0.1],
}


def folder(tmp_path: Path, tokens: bool = True) -> Path:
    """A run with one step and an evaluation."""
    turn = {"observation": EVIL, "response": "go to bed", "action": None, "valid": False, "feedback": ""}
    taught = {
        "hint": f"sleep {EVIL}",
        "notes": [{"kind": "diagnosis", "text": f"tired {EVIL}"}],
        "reward": 0.5,
    }
    row = {"task": f"task {EVIL}", "kind": "k", "success": False, "reward": 0.0, "ended": "truncated"}
    write_rows(tmp_path / "trajectories/step-000003.jsonl", [row | {"turns": [turn | taught]}] * 2)
    write_rows(tmp_path / "trajectories/eval-000003-after-RL.jsonl", [row | {"turns": [turn]}])
    if tokens:
        seen = {"episode": 1, "turn": 0, "prompt": "\n".join(map(str, range(50)))}
        write_rows(tmp_path / "tokens/step-000003.jsonl.gz", [seen | ROW])
    train = {
        "kind": "train",
        "step": 3,
        "rollout/success": 0.25,
        "rollout/episodes": 2.0,
        "time/rollout": 4.0,
    }
    train |= {"rollout/tokens_per_second": 512.0, "failures/total": 2.0, "restarts/engine": 1.0}
    evaluation = {"kind": "eval", "step": 3, "stage": "after RL", "eval/success": 0.5, "eval/episodes": 1.0}
    evaluation |= {"eval/low": 0.25, "eval/high": 0.75}
    write_rows(tmp_path / "metrics.jsonl", [train, evaluation])
    return tmp_path


def ask(*command: str, **variables: str) -> Result:
    done = CliRunner().invoke(app, list(command), env={"COLUMNS": "80", "TERM": "xterm", **variables})
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", done.output), (
        "text of the run reached the terminal"
    )
    return done


def test_a_run_is_listed(tmp_path: Path) -> None:
    listed = ask("show", str(folder(tmp_path))).output
    assert re.search(r"^ *3 +2 +0\.25 ", listed, re.M), listed
    assert re.search(r"^ *3-after-RL +1 +0\.50 ", listed, re.M), listed
    assert max(map(cell_len, listed.splitlines())) <= 80
    listed = ask("show", str(tmp_path), "3").output
    assert "3/0" in listed and "3/1" in listed and "truncated" in listed
    assert max(map(cell_len, listed.splitlines())) <= 80


@pytest.mark.parametrize("name", ["3/1", "step-3/1", "step-000003/1"])
def test_an_episode_is_printed_with_marks_instead_of_colors(tmp_path: Path, name: str) -> None:
    shown = ask("show", str(folder(tmp_path)), name, NO_COLOR="1").output
    assert "says   go [++to] [--bed]\n\\x1b[2J[--<end>]" in shown
    assert "hint   sleep \\x1b]0;owned\\x07 :smile: [bold red]x[/] \\u202e" in shown
    assert "diagnosis tired" in shown and "malformed, reward 0.5, mean advantage +0.500, 50.0%" in shown
    assert "… 38 lines (--full shows them)" in shown and "[+higher] [-lower]" in shown
    assert "\n25\n" not in shown and "\n25\n" in ask("show", str(tmp_path), name, "--full").output


def test_another_number_can_color(tmp_path: Path) -> None:
    shown = ask("show", str(folder(tmp_path)), "3/1", "--by", "delta").output
    assert "says   go [++to] [--bed]" in shown and "nats" in shown
    assert "no token has a weight" in ask("show", str(tmp_path), "3/0").output  # no turn was recorded


def test_an_evaluation_and_an_old_run_have_no_tokens(tmp_path: Path) -> None:
    run = str(folder(tmp_path, tokens=False))
    for name in ("after-RL/0", "3-after-RL/0", "eval-000003-after-RL/0", "3/1"):
        assert "go to bed" in ask("show", run, name).output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("4", "names no steps"), ("RL/", "3/0"), ("3/x", "3/0"), ("3/7", "has 2 episodes"),
        ("../../etc/passwd", "names no steps"), (":smile:", "':smile:'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_an_error(tmp_path: Path, name: str, said: str) -> None:
    done = ask("show", str(folder(tmp_path)), "--", name)
    assert done.exit_code == 1 and re.search(said, done.output)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    for command in (["show", str(tmp_path)], ["top", str(tmp_path), "--once"], ["top", str(tmp_path / "no")]):
        done = ask(*command)
        assert done.exit_code == 1 and "`out`" in done.output


def test_levels_and_colors() -> None:
    assert [level(w, "weight") for w in (0.0, 0.8, 0.92, 0.98, 1.0, 1.02, 1.07, 1.2)] == [
        -3,
        -3,
        -2,
        -1,
        0,
        1,
        2,
        3,
    ]
    assert [level(d, "delta") for d in (-3, -0.6, -0.2, 0, 0.2, 0.6, 3)] == [-3, -2, -1, 0, 1, 2, 3]
    assert token_values(ROW, "delta")[:2] == [pytest.approx(0.05), pytest.approx(2.5)]
    assert token_values(ROW, "delta")[2:] == [pytest.approx(-3.0), None, None]
    assert token_values({"tokens": ["a", "b"]}, "weight") == [None, None]
    painted = paint(ROW, "weight", color=True)
    assert painted.plain == "go to bed\n\\x1b[2J<end>"
    assert [str(span.style) for span in painted.spans] == [
        *("bold white on blue", "bold black on yellow", "dim", "bold black on yellow"),
    ]  # fmt: skip
    assert not math.isnan(level(0.0, "weight"))


def test_the_name_of_a_stage() -> None:
    assert stage_label(RunStage("step 3", "step-000003", 3, True)) == "3"
    assert stage_label(RunStage("eval, during RL", "eval-000020-during-RL", 20, False)) == "20-during-RL"


def status(**changes: Any) -> dict[str, Any]:
    """Of a run in its third step, written now."""
    now = time.time()
    return {
        "time": now, "process": 7, "host": "here", "outcome": None, "phase": "RL", "phase_since": now - 65,
        "phase_done": 2, "phase_total": 9, "doing": "updating", "since": now - 5, "done": 0, "total": None,
        "step": 2, "steps": 9, "ends": now + 7200, "starting": {},
        "episodes": {"in_flight": 8, "finished": 4}, **changes,
    }  # fmt: skip


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = folder(tmp_path)
    (run / "status.json").write_text(json.dumps(status()))
    shown = ask("top", str(run), "--once").output
    for said in (
        r"run +running, process 7 on here", r"phase +RL 2 of 9, for 1:0\d", r"doing +updating, for 0:0\d",
        r"step +2 of 9, about 2 h left", r"episodes +8 in flight, 4 finished", r"success +0\.25 at step 3",
        r"tokens/s +512", r"staleness +unknown", r"seconds +rollout 4\.0", r"failures +2",
        r"restarts +engine 1",
        r"evaluation +step 3, after RL: success 50\.0% \(25\.0% to 75\.0%\)",
    ):  # fmt: skip
        assert re.search(said, shown), said
    assert max(map(cell_len, shown.splitlines())) <= 80


def test_a_run_that_does_not_go_on() -> None:
    now = time.time()
    assert state(status(outcome="stopped"), {}, now) == "not running: it was stopped"
    assert state(status(outcome="failed"), {}, now) == "not running: it failed"
    assert "no sign of life for 1 h" in state(status(time=now - 3600), {}, now)
    assert state(status(time=now - SILENT / 2), {}, now).startswith("running")
    about = {"starts": [{"outcome": "failed"}, {"outcome": "finished"}]}
    assert state({}, about, now) == "not running: it finished"
    shown = dict(status_lines(status(time=now - 3600, since=now - 3700), [], {}, now))
    assert "left" not in shown["step"] and "episodes" not in shown and shown["doing"].endswith("1:40")


def test_a_start_says_what_it_waits_for() -> None:
    now = time.time()
    waits = {"engine": {"does": "loading the model, compiling it", "since": now - 62}}
    shown = status_lines(
        status(phase="starting actors", doing="starting actors", starting=waits), [], {}, now
    )
    assert ("starting", "engine: loading the model, compiling it, for 1:02") in shown
    assert "doing" not in dict(shown)


def test_hostile_texts_in_a_status(tmp_path: Path) -> None:
    run = folder(tmp_path)
    (run / "status.json").write_text(json.dumps(status(doing=EVIL * 9, host=EVIL)))
    assert max(map(cell_len, ask("top", str(run), "--once").output.splitlines())) <= 80
    (run / "status.json").write_text("{broken")
    assert "Delete it" in ask("top", str(run), "--once").output


def test_a_console_prints_strings_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole().print(EVIL)
    assert ":smile: [bold red]x[/]" in capsys.readouterr().out
