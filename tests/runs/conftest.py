"""Actors for many short runs; they end with the last test that borrows them: others need the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_actors import Shared, longest


@pytest.fixture(scope="session")
def shared(ray_local: None, nano: Path) -> Iterator[Shared]:
    """Engine, learner, critic, teacher and reference policy."""
    actors = Shared(longest(), str(nano))
    yield actors
    actors.close()


def pytest_runtest_teardown(item: pytest.Function) -> None:
    """A session's fixtures end with its last test, which may be long after the last one here."""
    after = item.session.items[item.session.items.index(item) + 1 :]
    borrow = [one for one in after if one.path.parent == item.path.parent and "shared" in one.fixturenames]
    actors = item.funcargs.get("shared")
    if actors is not None and not borrow:
        actors.close()
