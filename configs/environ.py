"""Environment variables of a run's processes: those that each needs, and the secrets that few may have."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

# Words of names such as OPENAI_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, SSH_AUTH_SOCK.
SECRET_WORDS = re.compile(
    r"(^|_)(KEYS?|TOKENS?|PASS|PASSPHRASE|CREDENTIALS?|AUTH)(_|$)|.PWD$|API_?KEY|SECRET|PASSW(OR)?D",
    re.IGNORECASE,
)
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s]*:[^/@\s]+@|https?://[^/@\s]+@")
RAYS = "RAY_"  # with which Ray's processes find and trust each other


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
    """`process_environment` for actors, which get no secrets, and model folders: they never ask a hub."""
    return process_environment(threads) | {"HF_HUB_OFFLINE": "1"} | blanked()


def secrets(variables: Mapping[str, str]) -> set[str]:
    """Names of the variables that look like a secret, by name or by an address with a password in it."""
    return {
        name
        for name, value in variables.items()
        if SECRET_WORDS.search(name) or PASSWORD_IN_ADDRESS.search(value)
    }


def public(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without secrets."""
    hidden = secrets(variables)
    return {name: value for name, value in variables.items() if name not in hidden}


def values(names: Iterable[str]) -> dict[str, str]:
    """Those of these variables that this process has."""
    return {name: value for name in names if (value := os.environ.get(name))}


def blanked() -> dict[str, str]:
    """This process's secrets with empty values, for an actor whose node may have been started with them: Ray
    can set variables, but not unset any. Ray's own stay."""
    return dict.fromkeys((name for name in secrets(os.environ) if not name.startswith(RAYS)), "")


@contextmanager
def without_secrets() -> Iterator[None]:
    """Take the secrets out of this process's environment, but for Ray's, while it starts others."""
    taken = {name: os.environ.pop(name) for name in blanked()}
    try:
        yield
    finally:
        os.environ.update(taken)


def apply(threads: int = 0) -> None:
    """Sets the variables in this process; call it before anything imports torch."""
    os.environ.update(process_environment(threads))
