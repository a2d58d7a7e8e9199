"""The environment variables that every process of a run needs, in one place."""

from __future__ import annotations

import os
import sys


def process_environment(threads: int = 0) -> dict[str, str]:
    """Variables for the processes of one actor that may use `threads` cores (0: all of them).

    They act when a process starts or first imports torch, vLLM or DeepSpeed, so actors get them through Ray's
    `runtime_env` and the command line through `apply`.
    """
    binaries = os.path.join(sys.prefix, "bin")
    path = os.environ.get("PATH", os.defpath)
    return {
        # libgomp's waiting threads spin by default: two threads ran up to 30 times slower under contention.
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": str(threads or len(os.sched_getaffinity(0))),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        # DeepSpeed compiles its collectives with ninja from this environment; environments that share the
        # compiled files rebuild over each other.
        "PATH": path if binaries in path.split(os.pathsep) else f"{binaries}{os.pathsep}{path}",
        "TORCH_EXTENSIONS_DIR": os.path.join(sys.prefix, "torch_extensions"),
    }


def actor_environment(threads: int = 0) -> dict[str, str]:
    """`process_environment` for actors: they are given model folders, so they never ask a hub."""
    return process_environment(threads) | {"HF_HUB_OFFLINE": "1"}


def apply(threads: int = 0) -> None:
    """Sets the variables in this process; call it before anything imports torch."""
    os.environ.update(process_environment(threads))
