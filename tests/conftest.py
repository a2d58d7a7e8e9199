"""What every test shares: the environment of a run's processes, a cache, a local Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from hindsight.configs.environ import ON_EACH_NODE, actor_environment
from hindsight.configs.paths import SOURCE

os.environ.update(actor_environment(threads=2))  # before any test module imports torch
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests run on the CPU, whatever the machine has
settings.register_profile("shared machine", deadline=None)  # wall time says nothing on busy cores
settings.load_profile("shared machine")
PROJECT = Path(__file__).resolve().parent.parent
os.environ.setdefault(
    "HINDSIGHT_CACHE", str(PROJECT / ".cache" / "hindsight")
)  # embedded models and games, made once


@cache
def scope(file: str) -> str:
    """What shares a process.

    A file's tests do, for its fixtures; the runs with shared actors, for those; all other whole runs, for the
    actors of three might not fit into memory; and the small tests with Ray, which is started once for them.
    """
    text = (PROJECT / file).read_text()
    if not any(fixture in text for fixture in ("ray_local", "shared_actors", "own_ray")):
        return file
    if "shared_actors" in text:
        return "ray, shared actors"
    folder = Path(file).parts[1]
    return "ray, small" if folder in ("envs", "learner", "rollout", "teacher") else "ray, whole runs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, and the others fill the remaining time.

    Those are the scopes that start Ray, and then the files next to this one, which start whole commands.
    """
    long = ["ray, whole runs", "ray, shared actors", "ray, small"]

    def place(item: pytest.Item) -> int:
        name = scope(item.nodeid.split("::")[0])
        return long.index(name) if name in long else len(long) + len(Path(name).parts)

    items.sort(key=place)


class Together(LoadScopeScheduling):
    """How `make test` hands out tests to two processes, in the order of their collection."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """How tests are handed out."""
    return Together(config, log)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray for the whole session, its actors seeing this checkout and the variables above."""
    import ray

    path = os.pathsep.join([SOURCE, *filter(None, sys.path)])  # helpers next to the tests included
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=4,  # logical: the actors of one small run, whatever the machine has
        include_dashboard=False,
        log_to_driver=True,
        runtime_env={
            "env_vars": {**actor_environment(threads=2), "PYTHONPATH": path},
            "worker_process_setup_hook": ON_EACH_NODE,
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def nano() -> Path:
    """The folder of the tiny embedded model."""
    from hindsight.rollout.models import resolve

    return resolve("nano")
