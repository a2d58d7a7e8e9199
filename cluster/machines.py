"""Ray and the machines it runs on: join or start a cluster, and see what its nodes have."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hindsight.cluster.failures import RunError
from hindsight.cluster.plan import Node
from hindsight.configs.environ import ON_EACH_NODE, without_secrets
from hindsight.configs.paths import SOURCE
from hindsight.configs.registry import PLUGIN_FOLDERS
from hindsight.envs.runtime.remote import await_remote

LOOPBACK = "127.0.0.1"
JOIN_ADVICE = (
    "Start one with `ray start --head` (with RAY_AUTH_MODE=token in both shells), "
    "or leave out --address to start a local Ray."
)
START_ADVICE = (
    "It gives its processes 30 s, which a busy machine may not suffice for: try again. In a container, "
    "`hindsight doctor` says whether /dev/shm is large enough. Its logs are in /tmp/ray/session_latest/logs."
)


def gpu_memory() -> list[float]:
    """Memory of each GPU of this machine in GiB, without creating a CUDA context; [] if there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if asked.returncode:
        return []
    try:
        return [float(line) / 1024 for line in asked.stdout.splitlines()]
    except ValueError as error:
        raise RunError(
            f"nvidia-smi reports {asked.stdout.strip()!r} as the GPUs' memory, not numbers: set "
            "cluster.gpus=none, or use GPUs with memory of their own"
        ) from error


def this_machine() -> Node:
    """What this machine has."""
    memory = gpu_memory()
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = set(Path("/proc/cpuinfo").read_text().split())
    native = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    return Node(float(os.cpu_count() or 1), ram, len(memory), min(memory, default=0.0), native)


def living_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


async def cluster_nodes(timeout: float) -> list[Node]:
    """What each node of the cluster has: CPUs and GPUs as Ray counts them, memory as the node reports it.

    Args:
        timeout: seconds for a node to answer (`cluster.start_timeout`).

    Raises:
        RunError: Ray counts GPUs on a node where nvidia-smi finds none.
        RemoteError: a node does not answer.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = []
    for node in living_nodes():
        if node["NodeID"] == here:
            found = this_machine()
        else:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            looking = ray.remote(this_machine).options(num_cpus=0, scheduling_strategy=there).remote()
            what = f"asking {node['NodeManagerAddress']} for its resources"
            found = await await_remote(looking, timeout=timeout, setting="cluster.start_timeout", what=what)
        gpus = int(node["Resources"].get("GPU", 0))
        if gpus and not found.gpus:
            raise RunError(
                f"Ray counts {gpus} GPUs on {node['NodeManagerAddress']}, but nvidia-smi finds none there: "
                "install the driver, or start Ray with --num-gpus=0"
            )
        nodes.append(replace(found, cpus=node["Resources"].get("CPU", 0.0), gpus=gpus))
    return nodes


def listens(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=5.0):
            return True
    except OSError:
        return False


def reason(error: Exception) -> str:
    """The last line of what Ray says; what comes before is a log or a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def connect(address: str | None, dashboard_port: int) -> str | None:
    """Join Ray at `address` (or at $RAY_ADDRESS, as a submitted job does), or start a local Ray.

    Args:
        address: `auto` or an address. dashboard_port: of a local Ray; 0 starts no dashboard.

    Returns:
        the dashboard's address, if there is one.

    Raises:
        RunError: no such cluster, Ray does not start, or the dashboard's port is taken.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    path = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
    common: dict[str, Any] = {
        "runtime_env": {
            "env_vars": {"PYTHONPATH": path, "HINDSIGHT_PLUGINS": os.pathsep.join(PLUGIN_FOLDERS)},
            "worker_process_setup_hook": ON_EACH_NODE,
        },
        "log_to_driver": False,  # the dashboard shows what actors print
        "logging_level": logging.WARNING,
    }
    if address:
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if port.isdigit() and not listens(host, int(port)):  # Ray itself would retry for minutes
            raise RunError(f"no Ray cluster answers at {address!r}. {JOIN_ADVICE}")
        # A submitted job may have a runtime environment of its own, with a PYTHONPATH; ours contains it.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        try:
            context = ray.init(address=address, **common)
        except Exception as error:  # Ray raises that class itself, too
            raise RunError(
                f"cannot join the Ray cluster at {address!r}: {reason(error)}. {JOIN_ADVICE}"
            ) from error
    else:
        if dashboard_port and listens(LOOPBACK, dashboard_port):
            raise RunError(
                f"port {dashboard_port} is in use. Set cluster.dashboard_port to a free one, "
                "or to 0 for no dashboard, or join the running Ray with --address auto."
            )
        # Ray then listens on the loopback interface only, as it does on macOS. Its processes read the
        # variable; this one did when it imported Ray.
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            with without_secrets():  # all of Ray's processes inherit from this one
                context = ray.init(
                    address="local",  # never join a cluster that happens to run on this machine
                    num_cpus=max(2, os.cpu_count() or 2),
                    include_dashboard=dashboard_port > 0,
                    dashboard_host=LOOPBACK,
                    dashboard_port=dashboard_port or None,
                    **common,
                )
        except Exception as error:  # Ray raises that class itself, too
            raise RunError(f"Ray did not start: {reason(error)}. {START_ADVICE}") from error
    url = context.dashboard_url
    return f"http://{url}" if url else None
