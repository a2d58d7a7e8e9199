"""Actors for many short runs; they end with this folder's last test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_actors import Shared, longest


@pytest.fixture(scope="package")
def shared(ray_local: None, nano: Path) -> Iterator[Shared]:
    """Engine, learner, critic, teacher and reference policy."""
    actors = Shared(longest(), str(nano))
    yield actors
    actors.close()
