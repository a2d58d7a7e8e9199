"""The wheel: what it holds, and that it works outside a clone, installed into an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    *("steps=1", "env.train_tasks=4", "env.eval_tasks=2", "env.max_turns=8", "env.slots=2"),
    *("sft.demos=2", "sft.epochs=1", "rollout.num_groups=1", "rollout.group_size=2", "rollout.max_tokens=8"),
    "method=grpo",
    *("evaluate.episodes=1", "evaluate.cold_episodes=1", "cluster.dashboard_port=0"),
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


@dataclass
class Installed:
    """The wheel in an environment that sees this one's other packages but not the clone."""

    bin: Path
    home: Path
    folder: Path  # empty, to run in

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Standard output of `hindsight …`."""
        variables = {"HOME": str(self.home), "COLUMNS": "120"}
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


def test_an_environment_is_played_without_a_clone(installed: Installed) -> None:
    shown = installed("envs", "play", "webshop", stdin="?\nsearch[lamp]\n")
    assert "search[" in shown and "click[" in shown


def test_training_without_a_clone(installed: Installed) -> None:
    """A whole run, which like those of the fixture `ray_local` must not run beside another."""
    installed("train", "nano", *TINY)
    rows = [
        json.loads(line) for line in (installed.folder / "runs/nano/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1]
    assert (installed.home / ".cache/hindsight/models").is_dir()
    assert not (installed.folder / ".cache").exists()
