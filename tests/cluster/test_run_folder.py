"""The reader of a run's folder, the timeline, and where a run comes from."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hindsight.cluster.report import provenance
from hindsight.cluster.report.lines import read_rows, write_rows
from hindsight.cluster.report.provenance import command_line, record_start
from hindsight.cluster.report.run_folder import RunFolder, RunFolderError, RunStage, evaluation_key, step_key
from hindsight.cluster.report.timeline import Timeline
from hindsight.cluster.run import open_record
from hindsight.configs.schema import Config, Tracking


def test_a_folder_of_an_older_version_opens(tmp_path: Path) -> None:
    """It has no run.json, tokens or timeline, and rows without time and stage."""
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "x": 1.0}\n{"step": 1, "ki')
    write_rows(tmp_path / "trajectories/step-000001.jsonl", [{"task": "t", "turns": []}])
    run = RunFolder(tmp_path)
    assert run.config() == {"steps": 3} and run.about() == {} and run.failures() == run.timeline(1) == []
    assert run.metrics() == run.metrics("train") == [{"step": 1, "kind": "train", "x": 1.0}]
    assert run.metrics("eval") == []
    assert run.steps() == [RunStage("step 1", "step-000001", 1, training=True)]
    assert run.episodes("step-000001") == [{"task": "t", "turns": []}]
    assert run.tokens("step-000001") == {} and run.episodes("step-000002") == []


def test_stages_come_in_the_order_of_the_run(tmp_path: Path) -> None:
    stages = [(0, "after warm start"), (0, "before warm start"), (2, "during RL"), (4, "after RL")]
    keys = [evaluation_key(*stage) for stage in stages] + [step_key(step) for step in (1, 2, 3, 4)]
    for key in [*keys, "notes"]:
        write_rows(tmp_path / f"trajectories/{key}.jsonl", [])
    assert [(stage.name, stage.step) for stage in RunFolder(tmp_path).steps()] == [
        ("eval, before warm start", 0),
        ("eval, after warm start", 0),
        ("step 1", 1),
        ("step 2", 2),
        ("eval, during RL", 2),
        ("step 3", 3),
        ("step 4", 4),
        ("eval, after RL", 4),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("run.json", "[1]", r"run\.json cannot be read"),
        ("run.json", '{"schema": 2}', r"schema 2, and this version of Hindsight reads 1"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n', r"metrics\.jsonl, line 2, is not JSON.*Repair"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl, line 1, is not a JSON object"),
        ("tokens/step-000001.jsonl.gz", "plain", r"step-000001\.jsonl\.gz cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / name).write_text(content)

    def read() -> None:
        run = RunFolder(tmp_path)
        run.config(), run.metrics(), run.tokens("step-000001")

    with pytest.raises(RunFolderError, match=says):
        read()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run's folder.*output folder"):
        RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match="there is no folder"):
        RunFolder(tmp_path / "nowhere")


def test_the_reader_needs_no_heavy_package() -> None:
    """A command that reads a folder starts at once, on a machine without GPUs or Ray."""
    heavy = ("torch", "ray", "vllm", "transformers", "deepspeed", "pandas")
    script = (
        f"import sys, hindsight.cluster.report.run_folder; print([n for n in {heavy} if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_spans_are_noted_as_they_end(tmp_path: Path) -> None:
    timeline, began = Timeline(tmp_path), time.time()
    with timeline.span(1, "learner", "update"):
        with timeline.span(1, "checkpoint", "save"):
            pass
        time.sleep(0.01)
    with pytest.raises(KeyError), timeline.span(1, "critic", "values"):
        raise KeyError
    with timeline.span(2, "evaluation", "after RL"):
        pass
    (tmp_path / "config.yaml").touch()
    first, second = RunFolder(tmp_path).timeline(1)
    assert (first["role"], first["name"], second["role"]) == ("learner", "update", "checkpoint")
    assert began - 1 < first["start"] <= second["start"] <= second["end"] < first["end"] <= time.time() + 1
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.write('{"step": 2, "ro')  # the process was killed
    timeline.truncate(2, {(2, "after RL")})
    assert [row["name"] for row in RunFolder(tmp_path).timeline(2)] == ["after RL"]
    timeline.truncate(2)  # it was not saved
    assert RunFolder(tmp_path).timeline(2) == []
    with timeline.span(2, "evaluation", "again"):
        pass
    timeline.truncate(2, {(2, "again")})
    assert len(RunFolder(tmp_path).timeline(1)) == 2
    assert [row["name"] for row in RunFolder(tmp_path).timeline(2)] == ["again"]


def test_each_start_of_a_run_is_noted_with_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/hindsight", "train", "nano", "tracker.names=[a, b]"])
    (tmp_path / "config.yaml").touch()
    with pytest.raises(KeyError), record_start(tmp_path, None):
        [start] = RunFolder(tmp_path).about()["starts"]
        assert (start["ended"], start["outcome"]) == (None, None)
        raise KeyError
    with pytest.raises(asyncio.CancelledError), record_start(tmp_path, 3):
        raise asyncio.CancelledError
    with record_start(tmp_path, 4):
        pass
    about = RunFolder(tmp_path).about()
    assert about["schema"] == 1
    ends = [(start["outcome"], start["resumed_from_step"]) for start in about["starts"]]
    assert ends == [("failed", None), ("stopped", 3), ("finished", 4)]
    for start in about["starts"]:
        assert start["started"] <= start["ended"] and start["started"][-6] in "+-"
        assert start["command"] == "hindsight train nano 'tracker.names=[a, b]'"
        assert start["versions"]["torch"] == version("torch")
        assert set(start["versions"]) == {"python", *provenance.PACKAGES}
    monkeypatch.setattr(sys, "argv", ["/somewhere/src/hindsight/__main__.py", "train"])
    assert command_line() == "hindsight train"


def test_what_ended_the_run_is_not_hidden_by_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[str]()

    def write(*_: object, **__: object) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append("the start")

    monkeypatch.setattr(provenance, "atomic_write", write)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(KeyError), record_start(tmp_path, None):
        raise KeyError


def test_the_commit_is_that_of_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        run = ["git", *who, "-C", str(tmp_path), *args]
        return subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    package = tmp_path / "hindsight/__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(provenance.hindsight, "__file__", str(package))
    assert provenance.code_version() == (None, None)
    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert provenance.code_version() == (None, None)  # a repository that holds an installed copy
    git("add", ".")
    git("commit", "-m", "ours")
    assert provenance.code_version() == (git("rev-parse", "HEAD"), False)
    package.write_text("x = 1\n")
    assert provenance.code_version() == (git("rev-parse", "HEAD"), True)


@pytest.mark.parametrize("resumes", [True, False])
def test_a_run_that_begins_anew_has_nothing_of_the_one_before(tmp_path: Path, resumes: bool) -> None:
    """That one left no checkpoint. Its starts are kept."""
    left = (
        "metrics.jsonl",
        "timeline.jsonl",
        "trajectories/step-000001.jsonl",
        "tokens/step-000001.jsonl.gz",
    )
    for name in (*left, "run.json"):
        write_rows(tmp_path / name, [{"step": 1, "kind": "train"}])
    renderer: Any = SimpleNamespace(token_bytes=lambda token: b"x")
    open_record(Config(out=str(tmp_path), tracker=Tracking(names=[])), renderer, resumes)[0].close()
    kept = [name for name in left if (tmp_path / name).exists() and read_rows(tmp_path / name)]
    assert kept == (list(left) if resumes else []) and (tmp_path / "run.json").exists()
