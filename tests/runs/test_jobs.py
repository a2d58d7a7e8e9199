"""`ray job submit` as docs/cluster.md has it: the job's driver and Ray's workers run the same code.

Jobs need a Ray with a dashboard, so they have one of their own (own_ray).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
UPLOADED = '{"env_vars": {"PYTHONPATH": "src"}}'
MARK = "# the uploaded copy\n"
JOB = """
import inspect
import ray
import hindsight
from hindsight.cluster.machines import connect

connect(None, 0)
package = ray.remote(lambda: (hindsight.__file__, inspect.getsource(hindsight)))
for where, (file, text) in (
    ("driver", (hindsight.__file__, inspect.getsource(hindsight))),
    ("task", ray.get(package.remote(), timeout=60)),
):
    print(where, "uploaded" if text.endswith("# the uploaded copy\\n") else "installed", file)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def own_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a client of a Ray with a dashboard."""
    names = ("port", "dashboard-port", "ray-client-server-port")
    ports = {name: free_port() for name in names}
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    env |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}",
    }
    env |= {"RAY_agent_register_timeout_ms": "120000"}  # else a node on a busy machine gives up after 30 s
    start = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--dashboard-agent-listen-port=0"]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as file:
        ours = [f"--{name}={port}" for name, port in ports.items()]
        head = subprocess.Popen([*start, *ours], env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 180
        while subprocess.run([BIN / "ray", "job", "list"], env=env, capture_output=True).returncode:
            assert head.poll() is None and time.monotonic() < until, log.read_text()
        yield env
    finally:
        head.terminate()
        head.wait(timeout=60)


@pytest.mark.parametrize(
    ("options", "code"), [((), "installed"), (("--runtime-env-json", UPLOADED), "uploaded")]
)
def test_driver_and_workers_of_a_job_import_the_same_code(
    own_ray: dict[str, str], tmp_path: Path, options: tuple[str, ...], code: str
) -> None:
    left_out = shutil.ignore_patterns("__pycache__", "node_modules", "static")
    shutil.copytree(
        PROJECT / "src", tmp_path / "src", ignore=left_out
    )  # links become folders, as in an upload
    with (tmp_path / "src/hindsight/__init__.py").open("a") as file:
        file.write(MARK)
    (tmp_path / "job.py").write_text(JOB)
    submit = [
        BIN / "ray",
        "job",
        "submit",
        "--working-dir",
        tmp_path,
        *options,
        "--",
        sys.executable,
        "job.py",
    ]
    done = subprocess.run(submit, env=own_ray, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(("driver ", "task "))]
    assert [line[:2] for line in told] == [["driver", code], ["task", code]], told
    folder = "working_dir_files" if code == "uploaded" else str(PROJECT / "src")
    assert all(folder in line[2] for line in told)
