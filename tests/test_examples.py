"""The examples work from outside the clone, together in one run, and `hindsight new` writes them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hindsight.configs.paths import SOURCE
from hindsight.envs.runtime.linux import descendants

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FILES = sorted(
    path.name for path in EXAMPLES.glob("*.*") if path.suffix in (".py", ".yaml") and path.stem[0] != "_"
)
KINDS = ("env", "feedback", "judge", "advantage", "signal", "tracker", "method")
TINY = [
    "model.path=nano",
    "rollout.kv_cache_gib=0.25",
    "steps=1",
    "out=run",
    "model.max_length=512",
    "learner.micro_batch_tokens=1024",
    "teacher.batch_tokens=1024",
    "env.slots=4",
    "env.max_turns=3",
    "rollout.num_groups=1",
    "rollout.max_num_seqs=4",
    "sft.demos=0",
    "evaluate.episodes=2",
    "evaluate.cold_episodes=1",
    "cluster.dashboard_port=0",
]
OWN = [
    "method=method.yaml",
    "feedback.max_tokens=128",
    "credit.advantage=advantage.py",
    "feedback.sources=[feedback.py]",
    "env.name=env.py",
    "env.limit=8",
    "signal.name=teacher_signal.py",
    "signal.scale=0.2",
    "tracker.names=[tensorboard, tracker.py]",
    "tracker.csv_name=rates.csv",
    "credit.length_penalty=0.5",
]


def hindsight(
    folder: Path, *arguments: str, timeout: float = 300, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, which is not in the clone."""
    command = [sys.executable, "-m", "hindsight", *arguments]
    env = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "200", **variables}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)


@contextmanager
def watched(key: str) -> Iterator[dict[str, set[bool]]]:
    """Meanwhile, look which of this process's descendants have `key` in their environment: by command."""
    seen: dict[str, set[bool]] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for pid in descendants(os.getpid()):
                with suppress(FileNotFoundError, ProcessLookupError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    has = key.encode() in Path(f"/proc/{pid}/environ").read_bytes()
                    seen.setdefault(command, set()).add(has)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("name", FILES)
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_can_be_used_at_once(kind: str, tmp_path: Path) -> None:
    written = hindsight(tmp_path, "new", kind, "my_own")
    assert written.returncode == 0, written.stderr
    command = written.stdout.splitlines()[1].split()
    assert command[:3] == ["hindsight", "train", "nano"] and any("my_own" in part for part in command)
    resolved = hindsight(tmp_path, "config", "nano", *(part.strip('"') for part in command[3:]))
    assert resolved.returncode == 0, resolved.stderr
    assert "my_own" in resolved.stdout
    again = hindsight(tmp_path, "new", kind, "my_own")
    assert again.returncode == 1 and "exists" in again.stderr


def test_all_examples_train_together_outside_the_clone(tmp_path: Path, ray_local: None) -> None:
    """`ray_local` keeps this from running beside other whole runs."""
    for name in FILES:
        shutil.copy(EXAMPLES / name, tmp_path)
    key = "sk-of-the-one-who-trains"
    with watched(key) as seen:
        done = hindsight(tmp_path, "train", "model.yaml", *OWN, *TINY, timeout=600, EXAMPLES_API_KEY=key)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    processes = " ".join(seen)
    assert all(part in processes for part in ("raylet", "ray::Engine", "runtime.forkserver"))
    # A process that was just forked is still its parent.
    assert {command for command, has in seen.items() if has == {True}} <= {
        command for command in seen if "-m hindsight train" in command
    }
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in written if key.encode() in path.read_bytes()]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    [row] = [row for row in rows if row["kind"] == "train"]
    assert row["learner/strength"] == 0.2
    assert [line.split(",")[1] for line in (tmp_path / "run/rates.csv").read_text().splitlines()] == [
        "eval",
        "train",
        "eval",
    ]
    episode = json.loads((tmp_path / "run/trajectories/step-000001.jsonl").read_text().splitlines()[0])
    assert "from 1 to 8" in episode["turns"][0]["observation"]


def test_names_of_modules_are_refused(tmp_path: Path) -> None:
    for name, message in (("random", "already the name"), ("class", "cannot be"), ("My-env", "cannot be")):
        refused = hindsight(tmp_path, "new", "env", name)
        assert refused.returncode == 1 and message in refused.stderr
    assert list(tmp_path.iterdir()) == []
