"""Comparing runs; the numbers are worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.cluster.outcomes import Play, bootstrap, plays_of
from hindsight.cluster.report.compare import (
    COLD,
    Compared,
    Point,
    Unpaired,
    curve_table,
    describe_difference,
    difference,
    differing,
    figures_table,
    gains,
    gains_table,
    on_panels,
    printed,
    read_runs,
    short_names,
    since_warm_start,
)


def run(name: str, missing: int = 0, env: str = "toy", **outcomes: Sequence[bool]) -> Compared:
    last = Point("after RL", 4, 90.0, 8.0, 0.5, 0.3, 0.7, sum(map(len, outcomes.values())), missing)
    return Compared(name, {"env.name": env}, (), (last,), outcomes)


def episode(task: str, success: bool, trial: int = 1) -> dict[str, Any]:
    """A row of trajectories/*.jsonl."""
    return {"task": task, "trial": trial, "success": success, "reward": float(success), "turns": [{}]}


def test_differences_are_of_the_same_tasks() -> None:
    """By task: +1, 0 (both ½), −½, +½; their mean is ¼."""
    first = run("first", a=[False], b=[True, False], c=[True], d=[False, False])
    second = run("second", a=[True], b=[False, True], c=[True, False], d=[True, False])
    found = difference(first, second)
    assert (found.tasks, found.mean, found.left_out) == (4, 0.25, 0)
    assert (found.better, found.worse) == (2, 1)
    assert -0.5 <= found.low < 0.25 < found.high <= 1
    assert difference(second, first).mean == -0.25


@pytest.mark.parametrize(
    ("gains", "low", "high"),
    [
        ([1.0, 1.0, 1.0], 1.0, 1.0),
        ([0.0], 0.0, 0.0),
        # Of two tasks, resampled means are 0, ½, 1 with chances of ¼, ½, ¼.
        ([0.0, 1.0], 0.0, 1.0),
        # Of three, k of 3 Bernoulli trials at ⅓: P(k = 0) = 0.296, P(k ≤ 2) = 0.963; so from 0 to 3.
        ([0.0, 0.0, 1.0], 0.0, 1.0),
        # Of ten, k of 10 Bernoulli trials at ½: P(k ≤ 1) = 0.011, P(k ≤ 2) = 0.055; so from 2 to 8.
        ([0.0] * 5 + [1.0] * 5, 0.2, 0.8),
        # One of ten at 1: P(k ≤ 2) = 0.930, P(k ≤ 3) = 0.987; so from 0 to 3.
        ([0.0] * 9 + [1.0], 0.0, 0.3),
    ],
)
def test_bootstrap_intervals_of_what_can_be_counted(gains: list[float], low: float, high: float) -> None:
    assert bootstrap(np.array(gains)) == pytest.approx((low, high))


def test_other_panels_are_not_paired() -> None:
    first, other = run("first", a=[True], b=[False]), run("other", b=[True], c=[True])
    with pytest.raises(Unpaired, match=r"different tasks \(2 and 2, 1 in common\)"):
        difference(first, other)
    with pytest.raises(Unpaired, match=r"^first plays toy, other games$"):
        difference(first, run("other", env="games", a=[True], b=[True]))
    with pytest.raises(Unpaired, match="other has 0 episodes for the 0 results"):
        difference(first, run("other"))
    assert describe_difference(first, other).startswith("not paired: first and other were")


def test_panels_of_other_digests_are_not_paired() -> None:
    """Tasks of the same names may differ in what they hold."""

    def on(panel: str) -> Compared:
        one = run(panel, a=[True], b=[False])
        return replace(one, evaluations=[replace(one.evaluations[-1], panel=panel)])

    with pytest.raises(Unpaired, match=r"far \(1\) was evaluated on panel far \(1\), far \(2\) on far \(2\)"):
        difference(on("far (1)"), on("far (2)"))
    assert difference(on("far (1)"), on("far (1)")).tasks == 2
    assert difference(on("far (1)"), on("")).tasks == 2  # where the panel is not known


def test_tasks_that_failures_kept_from_finishing_are_left_out() -> None:
    first, second = run("first", a=[True], b=[False], c=[False]), run("second", missing=1, a=[True], b=[True])
    found = difference(first, second)
    assert (found.tasks, found.mean, found.left_out) == (2, 0.5, 1)
    assert "on 2 tasks: 1 better, 0 worse, 1 left out" in describe_difference(first, second)
    with pytest.raises(Unpaired):  # of two absent tasks, one did not fail
        difference(run("first", a=[True], b=[False], c=[False]), run("second", missing=1, a=[True]))


def test_an_episode_without_a_result_is_no_failure() -> None:
    """A failure of infrastructure in a second trial leaves the first one on file."""
    first = run("first", a=[True], b=[True])
    broken = replace(first, name="broken", outcomes={"a": [True], "b": [True], "c": [False]})
    for pair in ((first, broken), (broken, first)):
        with pytest.raises(Unpaired, match="broken has 3 episodes for the 2 results"):
            difference(*pair)


def test_a_play_succeeds_if_one_of_its_trials_does() -> None:
    trials = [("a", 1, False), ("a", 2, True), ("b", 1, False), ("b", 2, False), ("a", 1, False)]
    rows = [episode(task, success, trial) for task, trial, success in trials]

    def outcomes(rows: list[dict[str, Any]]) -> dict[str, list[bool]]:
        return {task: [play.success for play in own] for task, own in plays_of(rows).items()}

    assert outcomes(rows) == {"a": [True, False], "b": [False]}
    assert outcomes([episode("a", True), episode("a", False)]) == {"a": [True, False]}


def test_figures_are_printed_as_in_papers_and_paired_where_they_can_be() -> None:
    def played(name: str, **rewards: list[float]) -> Compared:
        plays = {task: [Play(one == 1, one, 4.0) for one in own] for task, own in rewards.items()}
        outcomes = {task: [one == 1 for one in own] for task, own in rewards.items()}
        return replace(run(name, **outcomes), plays=plays)

    def cells(table: Any) -> dict[str, list[str]]:
        rows = zip(*(map(str, column.cells) for column in table.columns), strict=True)
        return {name: own for name, *own in rows}

    names = ["avg_at_4", "best_at_8", "pass_at_1", "pass_hat_2", "tokens_per_play", "score"]
    assert [printed(name) for name in names] == [
        "Avg@4",
        "Best@8",
        "pass@1",
        "pass^2",
        "tokens per play",
        "score",
    ]
    first = played("first", a=[1.0, 0.0], b=[0.5, 0.5])
    second = played("second", a=[1.0, 1.0], b=[1.0, 0.5])
    other = played("other", c=[1.0, 1.0])
    told = cells(figures_table([first, second, other]))
    assert [text.partition(" ")[0] for text in told["score"]] == ["50.0", "87.5", "100.0"]
    assert [text.partition(" ")[0] for text in told["pass^2"]] == ["0.0", "50.0", "100.0"]
    assert [text.partition(" ")[0] for text in told["Best@2"]] == ["50.0", "100.0", "100.0"]
    assert told["turns"] == ["4.0 (4.0 to 4.0)"] * 3 and told["training turns"] == ["90"] * 3
    table = gains_table([first, second, other])
    assert [column.header for column in table.columns] == ["", "second"]  # the third played other tasks
    assert cells(table)["score"] == ["+37.5 (+25.0 to +50.0)"]
    assert cells(table)["success"] == ["+50.0 (+50.0 to +50.0)"]


def test_settings_that_differ() -> None:
    runs = [
        Compared("a", {"out": "x", "steps": 4, "learner.lr": 1e-5, "loss.kl": 0.0}),
        Compared("b", {"out": "y", "steps": 4, "learner.lr": 2e-5}),
    ]
    assert differing(runs) == {"learner.lr": [1e-5, 2e-5], "loss.kl": [0.0, None]}


def test_the_cold_evaluation_is_on_the_curve_of_a_run_without_a_warm_start() -> None:
    cold, warm, last = (
        Point(stage, step, 0, 0, 0.5, 0, 1) for stage, step in ((COLD, 0), ("w", 0), ("l", 4))
    )
    assert Compared("a", {}, (), (cold, warm, last)).curve == [warm, last]
    assert Compared("a", {}, (), (cold, last)).curve == [cold, last]


def evaluation(step: int, stage: str, success: float, turns: float) -> dict[str, Any]:
    rate = {"eval/success": success, "eval/low": success - 0.1, "eval/high": success + 0.1}
    counts = {"eval/episodes": 2.0, "eval/missing": 0.0, "rollout/turns_total": turns}
    return {"step": step, "kind": "eval", "stage": stage, **rate, **counts}


def write(folder: Path, name: str, settings: str, outcomes: Mapping[str, bool]) -> Path:
    """A run of two steps, of 3 and 5 seconds."""
    out = folder / name
    (out / "trajectories").mkdir(parents=True)
    (out / "config.yaml").write_text(f"out: {out}\nenv:\n  name: toy\nlearner:\n  {settings}\n")
    steps = [
        {"step": step, "kind": "train", "rollout/success": 0.25, "rollout/turns_total": 10.0 * step}
        | {"time/step": seconds}
        for step, seconds in ((1, 3.0), (2, 5.0))
    ]
    first, last = evaluation(0, "after warm start", 0.2, 0.0), evaluation(2, "after RL", 0.5, 20.0)
    rows = [{"step": 1, "kind": "sft", "loss": 1.0}, first, *steps, last]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    episodes = [episode(*one) for one in outcomes.items()]
    (out / "trajectories/eval-000002-after-RL.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in episodes)
    )
    return out


def test_runs_are_read_from_their_folders(tmp_path: Path) -> None:
    out = write(tmp_path, "one", "lr: 0.1", {"a": True, "b": False})
    [found] = read_runs([out])
    assert found.name == "one" and found.settings["learner.lr"] == 0.1
    assert found.outcomes == {"a": [True], "b": [False]}
    places = [[point.at(axis) for point in found.curve] for axis in ("step", "turns", "seconds")]
    assert places == [[0, 2], [0, 20], [0, 8]]
    assert [(p.step, p.turns, p.seconds, p.success) for p in found.training] == [
        (1, 10, 3, 0.25),
        (2, 20, 8, 0.25),
    ]
    assert math.isnan(found.training[0].low) and found.curve[1].high == 0.6


def on_two_panels(folder: Path, name: str, order: Sequence[str], far: Sequence[bool], digest: str) -> Path:
    """A run that was evaluated on `near`, where it solved a of a and b, and on `far`, where c took ten tokens
    and d twenty.
    """
    out = write(folder, name, "lr: 0.1", {})
    episodes = {
        "near": [episode("a", True), episode("b", False)],
        "far": [
            episode(task, won) | {"tokens": 10 * n}
            for n, (task, won) in enumerate(zip("cd", far, strict=False), 1)
        ],
    }
    last = evaluation(2, "after RL", 0.5, 20.0) | {"panels": {}}
    for place, panel in enumerate(order):
        last["panels"][panel] = digest if panel == "far" else "0"
        if place:
            last |= {
                key.replace("eval/", f"eval/{panel}/"): last[key] for key in [*last] if key[:5] == "eval/"
            }
        end = f"--{panel}" if place else ""
        rows = "".join(json.dumps(row) + "\n" for row in episodes[panel])
        (out / f"trajectories/eval-000002-after-RL{end}.jsonl").write_text(rows)
    kept = (out / "metrics.jsonl").read_text().splitlines()[:-1]
    (out / "metrics.jsonl").write_text("\n".join([*kept, json.dumps(last)]) + "\n")
    return out


def test_every_panel_that_both_runs_have_is_paired(tmp_path: Path) -> None:
    """In whichever order. Without the panel, or with other tasks under its name, a run is left out."""
    folders = [
        on_two_panels(tmp_path, "first", ["near", "far"], [False, False], "1"),
        on_two_panels(tmp_path, "second", ["far", "near"], [True, False], "1"),
        on_two_panels(tmp_path, "other", ["near", "far"], [True, True], "2"),
        on_two_panels(tmp_path, "near", ["near"], [], "1"),
    ]
    near, far = on_panels(read_runs(folders))
    assert [one.name for one in near] == ["first", "second", "other", "near"]
    assert [difference(near[0], one).mean for one in near[1:]] == [0.0] * 3
    assert [one.name for one in far] == ["first", "second"]
    assert difference(*far).mean == 0.5 and far[1].evaluations[-1].panel == "far (1)"
    told = CliRunner().invoke(app, ["compare", *map(str, folders)], env={"COLUMNS": "300"})
    assert "Last evaluation on near (0), by task" in told.output
    assert "Last evaluation on far (1), by task" in told.output
    assert "second − first: +50.0 points" in told.output.partition("on far (1)")[2]


def test_tokens_are_paired_where_they_are_recorded(tmp_path: Path) -> None:
    """On `far` both runs sampled 10 and 20 tokens; on `near` no row says how many."""
    runs = [on_two_panels(tmp_path, name, ["near", "far"], [True, True], "1") for name in ("one", "two")]
    near, far = on_panels(read_runs(runs))
    assert gains(*far)["tokens_per_play"].mean == 0.0 and far[0].plays["d"][0].tokens == 20
    assert "tokens_per_play" not in gains(*near)
    [play] = plays_of([episode("a", True, trial) | {"tokens": 5} for trial in (1, 2)])["a"]
    assert math.isnan(play.tokens)  # there was a lesson in between


def test_a_run_is_compared_with_itself_before_rl(tmp_path: Path) -> None:
    """By task: +1, 0, +1, 0; resampled means of four such gains are k/4: P(0) = P(1) = 6 %."""
    after = {"a": True, "b": False, "c": True, "d": True}
    out, before = write(tmp_path, "one", "lr: 0.1", after), {**after, "a": False, "c": False}
    assert since_warm_start(out) == []  # the episodes before are not on file
    rows = [episode(*one) for one in before.items()]
    file = out / "trajectories/eval-000000-after-warm-start.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = (out / "metrics.jsonl").read_text().replace('"eval/episodes": 2.0', '"eval/episodes": 4.0')
    (out / "metrics.jsonl").write_text(metrics)
    [line] = since_warm_start(out)
    assert line == (
        "after RL − after warm start: +50.0 points (95 % interval +0.0 to +100.0) on 4 tasks: "
        "2 better, 0 worse"
    )
    file.write_text(json.dumps(episode("a", False)) + "\n")
    assert "not paired: after warm start has 1 episodes for the 4 results" in since_warm_start(out)[0]


def test_a_run_without_rl_has_nothing_to_compare(tmp_path: Path) -> None:
    out = write(tmp_path, "one", "lr: 0.1", {"a": True})
    kept = [row for row in (out / "metrics.jsonl").read_text().splitlines() if '"step": 2' not in row]
    (out / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert since_warm_start(out) == []


def test_names_are_as_short_as_tells_runs_apart() -> None:
    def named(*paths: str) -> list[str]:
        return short_names([Path(path) for path in paths])

    assert named("/runs/a", "/runs/b") == ["a", "b"]
    assert named("/x/run", "/y/run") == ["x", "y"]
    assert named("/runs/a/run", "/runs/b", "/runs/a/c") == ["a/run", "b", "a/c"]
    assert named("/runs/a") == ["a"]


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    first = write(tmp_path, "first", "lr: 0.1", {"a": True, "b": False})
    second = write(tmp_path, "second", "lr: 0.2", {"a": True, "b": True})
    other = write(tmp_path, "other", "lr: 0.2", {"c": True, "b": True})
    files = ["--csv", str(tmp_path / "c.csv"), "--png", str(tmp_path / "c.png"), "--x", "seconds"]
    told = CliRunner().invoke(
        app, ["compare", *map(str, (first, second, other)), *files], env={"COLUMNS": "300"}
    )
    assert told.exit_code == 0, told.output
    assert "learner.lr" in told.output and "out" not in told.output.split("Success of evaluations")[0]
    assert "second − first: +50.0 points (95 % interval +0.0 to +100.0) on 2 tasks: 1 better" in told.output
    assert "other − first: not paired: first and other were evaluated on different tasks" in told.output
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "run,stage,step,turns,seconds,success,low,high,episodes,missing"
    assert lines[2] == "first,after RL,2,20.0,8.0,0.5,0.4,0.6,2,0"
    assert lines[3] == "first,training,1,10.0,3.0,0.25,,,0,0" and len(lines) == 1 + 3 * 4
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(app, ["compare", str(tmp_path / "absent")])
    assert wrong.exit_code == 1 and "absent" in wrong.output


def test_curves_of_runs_share_an_axis() -> None:
    runs = [
        Compared("a", {}, (), (Point("w", 0, math.nan, 0, 0.1, 0, 0.2), Point("l", 4, 80, 0, 0.5, 0.4, 0.6))),
        Compared("b", {}, (), (Point("w", 0, 0, 0, 0.2, 0.1, 0.3), Point("l", 8, 80, 0, 0.75, 0.5, 1))),
    ]

    def rows(axis: Any) -> list[list[str]]:
        columns = [list(column.cells) for column in curve_table(runs, axis).columns]
        return [list(map(str, row)) for row in zip(*columns, strict=True)]

    assert rows("step") == [
        ["0", "10.0% (0.0% to 20.0%)", "20.0% (10.0% to 30.0%)"],
        ["4", "50.0% (40.0% to 60.0%)", ""],
        ["8", "", "75.0% (50.0% to 100.0%)"],
    ]
    assert [row[0] for row in rows("turns")] == ["0", "80"]  # where one is not known there is no row
