"""What every test shares: the environment of a run's processes, a cache, a local Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from configs.environ import actor_environment

os.environ.update(actor_environment(threads=2))  # before any test module imports torch
settings.register_profile("shared machine", deadline=None)  # wall time says nothing on busy cores
settings.load_profile("shared machine")
PROJECT = Path(__file__).resolve().parent.parent
os.environ.setdefault(
    "HINDSIGHT_CACHE", str(PROJECT / ".cache" / "hindsight")
)  # embedded models and games, made once


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together in one of the processes of `make test`: those of a file, for its fixtures,
    and all that start Ray, for two of them would not fit into memory."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            together = "ray" if "ray_local" in getattr(item, "fixturenames", ()) else str(item.path)
            item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray for the whole session, its actors seeing this checkout and the variables above."""
    import ray

    path = os.pathsep.join([str(PROJECT), *filter(None, sys.path)])  # helpers beside the tests included
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=4,  # logical: the actors of one small run, whatever the machine has
        include_dashboard=False,
        log_to_driver=True,
        runtime_env={"env_vars": {**actor_environment(threads=2), "PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def nano() -> Path:
    """The folder of the tiny embedded model."""
    from rollout.models import resolve

    return resolve("nano")
