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
CORE_SHARE = "HINDSIGHT_CORE_SHARE"  # of its node's cores, for an actor whose threads nobody set
ACTOR_NAME = "HINDSIGHT_ACTOR"
ON_EACH_NODE = "hindsight.configs.environ.apply_in_worker"  # Ray's `worker_process_setup_hook`


def everywhere() -> dict[str, str]:
    """Variables that are the same on every node.

    They act when a process starts or first imports torch, vLLM or DeepSpeed.
    """
    return {
        # libgomp's waiting threads spin by default: two threads ran up to 30 times slower under contention.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    }


def of_this_node(share: float = 1.0) -> dict[str, str]:
    """Variables of a process that may use this share of this node's cores, with this node's environment."""
    binaries = os.path.join(sys.prefix, "bin")
    path = os.environ.get("PATH", os.defpath)
    return {
        "OMP_NUM_THREADS": str(max(1, int(len(os.sched_getaffinity(0)) * share))),
        # DeepSpeed compiles its collectives with ninja from this environment; environments that share the
        # compiled files rebuild over each other.
        "PATH": path if binaries in path.split(os.pathsep) else f"{binaries}{os.pathsep}{path}",
        "TORCH_EXTENSIONS_DIR": os.path.join(sys.prefix, "torch_extensions"),
    }


def actor_environment(threads: int = 0) -> dict[str, str]:
    """What the driver gives actors through `runtime_env`; what depends on the node, each sets there.

    They get no secrets, and model folders: they never ask a hub.

    Args:
        threads: the same for each node; 0: CORE_SHARE of its cores.
    """
    cores = {"OMP_NUM_THREADS": str(threads)} if threads else {CORE_SHARE: "1"}
    return everywhere() | cores | {"HF_HUB_OFFLINE": "1"} | blanked()


def actor_name_variable(role: str, index: int = 0) -> dict[str, str]:
    """The variable that names an actor."""
    return {ACTOR_NAME: f"{role}-{index}"}


class Named:
    """An actor that Ray's logs and pages show by its role and number, such as engine-0, not by its class."""

    def __repr__(self) -> str:
        return os.environ.get(ACTOR_NAME) or super().__repr__()


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


def present_variables(names: Iterable[str]) -> dict[str, str]:
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


def apply() -> None:
    """Set the variables in this process; call it before anything imports torch."""
    os.environ.update(everywhere() | of_this_node())


def apply_in_worker() -> None:
    """Set what depends on the node, in one of Ray's processes, before its actor's module is imported."""
    own = of_this_node(float(os.environ.get(CORE_SHARE, "1")))
    if CORE_SHARE not in os.environ:  # an actor with a fixed number of threads, or one that computes nothing
        del own["OMP_NUM_THREADS"]
    os.environ.update(own)
