"""`hindsight trace`: what it writes keeps to the rules of the trace event format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_runs import START, write_run, write_sparse_run
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.cluster.report.run_folder import RunFolder, RunFolderError
from hindsight.cluster.report.trace import Slice, events, write_trace
from hindsight.cluster.report.viewing import DEMO

Event = dict[str, Any]
KEYS = {
    "M": {"ph", "name", "pid", "tid", "ts", "args"},
    "X": {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"},
    "i": {"ph", "s", "name", "cat", "pid", "tid", "ts", "args"},
}


def require_valid(found: list[Event]) -> None:
    """The format's rules: known phases and their keys, whole µs, named threads, slices that nest."""
    for event in found:
        assert set(event) == KEYS[event["ph"]], event
        assert all(type(event[key]) is int for key in ("pid", "tid", "ts", "dur") if key in event), event
        assert event["ts"] >= 0 and event.get("dur", 0) >= 0 and event.get("s", "p") in "gpt"
    names = [(one["name"], one["pid"], one["tid"]) for one in found if one["ph"] == "M"]
    assert len(set(names)) == len(names)
    for event in found:
        if event["ph"] != "M":
            assert ("process_name", event["pid"], 0) in names
            assert ("thread_name", event["pid"], event["tid"]) in names
    threads: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for one in found:
        if one["ph"] == "X":
            threads.setdefault((one["pid"], one["tid"]), []).append((one["ts"], one["ts"] + one["dur"]))
    for own in threads.values():
        around: list[int] = []  # where the slices end that contain the next one
        for start, end in sorted(own, key=lambda one: (one[0], -one[1])):
            while around and around[-1] <= start:
                around.pop()
            assert not around or end <= around[-1], "slices of a thread overlap"
            around.append(end)


def named(found: list[Event]) -> dict[str, dict[str, list[Event]]]:
    """Process -> thread -> its events."""
    processes = {one["pid"]: one["args"]["name"] for one in found if one["name"] == "process_name"}
    threads = {one["tid"]: one["args"]["name"] for one in found if one["name"] == "thread_name"}
    made: dict[str, dict[str, list[Event]]] = {name: {} for name in processes.values()}
    for one in found:
        if one["ph"] != "M":
            made[processes[one["pid"]]].setdefault(threads[one["tid"]], []).append(one)
    return made


def episode(start: float, end: float, slot: int, turns: list[list[float]], **more: Any) -> Event:
    span = {"step": 1, "role": "engine", "name": "engine 0", "start": START + start, "end": START + end}
    return {**span, "slot": [0, slot], "turns": turns, **more}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A toy run whose first step notes turns: two episodes side by side, and one after them in a slot."""
    folder = write_run(tmp_path / "run")
    rows = [
        episode(100.0, 104.0, 0, [[0.5, 2.0], [2.5, 3.0]], group=0),
        episode(100.5, 103.0, 10, [[0.1, 1.0]], group=1),
        episode(
            104.0, 105.0, 0, [[0.0004, 1.0006]]
        ),  # an evaluation's; its turn ends in the next millisecond
        {"step": 1, "role": "checkpoint", "name": "copy", "start": START + 160, "end": START + 161},
        {"step": 1, "role": "checkpoint", "name": "save", "start": START + 161, "end": START + 162},
    ]
    with (folder / "timeline.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return RunFolder(folder)


def read(run: RunFolder, step: int | None = None) -> list[Event]:
    file, count = write_trace(run, step)
    found: list[Event] = json.loads(file.read_text())["traceEvents"]
    assert count == len(found)
    return found


def test_a_trace_keeps_to_the_format(run: RunFolder) -> None:
    require_valid(read(run))
    require_valid(read(run, 1))
    assert sorted(file.name for file in run.path.glob("trace*")) == ["trace-step-000001.json", "trace.json"]


def test_processes_are_roles_and_threads_are_what_works_at_once(run: RunFolder) -> None:
    found = named(read(run, 1))
    assert list(found) == [
        "driver", "workers", "environments", "engine 0", "teacher", "learner", "weight sync",
    ]  # fmt: skip
    assert list(found["environments"]) == ["slot 0", "slot 10"]
    assert list(found["workers"]) == ["groups", "groups (2)"]
    assert list(found["engine 0"]) == ["requests", "requests (2)"]
    assert [one["name"] for one in found["environments"]["slot 0"]] == [
        *("group 0", "environment", "waits for engine 0", "environment", "waits for engine 0", "environment"),
        *("evaluation", "environment", "waits for engine 0", "environment"),
    ]
    requests = [one for thread in found["engine 0"].values() for one in thread]
    first = next(one for one in requests if one["name"] == "group 0, turn 1")
    assert first["dur"] == 1_500_000 and first["args"] == {"step": 1, "turn": 1}
    steps = [(one["name"], one["ts"], one["dur"]) for one in found["driver"]["steps"]]
    assert steps[:3] == [
        ("step 1", 40_000_000 - 40_000_000, 60_000_000),
        ("waits for rollout", 0, 30_000_000),
        ("waits for feedback and teacher", 30_000_000, 10_000_000),
    ]
    assert [one["name"] for one in found["driver"]["checkpoints"]] == ["copy", "save", "step 1 is saved"]


def test_a_step_has_its_own_spans_and_a_run_has_all(run: RunFolder) -> None:
    assert {one["args"].get("step") for one in read(run, 2) if one["ph"] == "X"} == {2, None}
    assert {1, 2, 3} <= {one["args"].get("step") for one in read(run) if one["ph"] == "X"}


def test_tasks_that_were_set_aside_are_instants(run: RunFolder) -> None:
    row = {
        "task": "a/b",
        "kind": "prompt",
        "message": "too long",
        "step": 1,
        "time": "2026-09-21T13:34:00+00:00",
    }
    (run.path / "failures.jsonl").write_text(json.dumps(row) + "\n")
    found = read(run)
    require_valid(found)
    [instant] = named(found)["driver"]["failures"]
    assert instant["ph"] == "i" and instant["name"] == "task set aside: prompt"
    assert instant["args"]["message"] == "too long"


def test_spans_that_overlap_get_threads_of_their_own() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (0.0, 4.0), (1.5, 1.5)]
    found = events([Slice("a", "b", str(at), *span) for at, span in enumerate(spans)])
    require_valid(found)
    assert {name: len(own) for name, own in named(found)["a"].items()} == {
        **{"b": 1, "b (2)": 2, "b (3)": 1, "b (4)": 1}
    }


def test_what_is_inside_is_cut_to_what_contains_it() -> None:
    inside = [
        Slice("", "", "early", -1.0, 0.5),
        Slice("", "", "late", 0.4, 9.0),
        Slice("", "", "after", 9.0, 9.5),
    ]
    found = events([Slice("a", "b", "all", 0.0, 1.0, inside=inside)])
    require_valid(found)
    assert [(one["ts"], one["dur"]) for one in found if one["ph"] == "X"] == [
        (0, 1_000_000), (0, 500_000), (500_000, 500_000), (1_000_000, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("demo", sorted(DEMO.iterdir()), ids=lambda folder: folder.name)
def test_recorded_runs_have_a_trace(demo: Path, tmp_path: Path) -> None:
    for step in (None, 1, 2):
        file, _ = write_trace(RunFolder(demo), step, tmp_path / "trace.json")
        require_valid(json.loads(file.read_text())["traceEvents"])


def test_what_has_no_trace_is_said(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no spans of step 7: it has steps 1 to 3"):
        write_trace(run, 7)
    with pytest.raises(RunFolderError, match="it has no timeline"):
        write_trace(RunFolder(write_sparse_run(tmp_path / "sparse")))
    with pytest.raises(RunFolderError, match="--out"):
        write_trace(run, 1, tmp_path / "nowhere/trace.json")


def test_the_command_says_what_it_wrote(run: RunFolder, tmp_path: Path) -> None:
    asked = ["trace", str(run.path), "--step", "1", "--out", str(tmp_path / "one.json")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0 and f"wrote {tmp_path / 'one.json'}: " in done.output
    failed = CliRunner().invoke(app, ["trace", str(run.path), "--step", "7"])
    assert failed.exit_code == 1 and "no spans of step 7" in failed.output
