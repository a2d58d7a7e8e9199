"""How the tests isolate agents' code: as this machine allows."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from hindsight.envs.runtime.sandbox import MODES, Permissions, refusal


@cache
def reasons() -> dict[str, str]:
    """Why each mode of `env.sandbox` cannot be had here; empty for those that can."""
    with tempfile.TemporaryDirectory() as folder:
        return {mode: refusal(mode, Permissions(Path(folder), {})) for mode in MODES}


def sandbox() -> str:
    """The strongest mode that this machine allows, for tests of something else."""
    for mode, reason in reasons().items():
        if not reason:
            return mode
    pytest.skip(f"neither namespaces nor limits can be had here: {reasons()}", allow_module_level=True)


def need(mode: str) -> None:
    """Skip the test where this mode cannot be had."""
    if reasons()[mode]:
        pytest.skip(f"{mode} cannot be had here: {reasons()[mode]}")
