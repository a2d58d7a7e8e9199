"""Which weights the teacher holds: a live, a periodic or a frozen copy of the student. Pure."""

from __future__ import annotations


def copied_at(completed: int, every: int) -> int:
    """The number of completed training steps after which the student's weights were what the teacher holds.

    The teacher starts as the initial policy (0) and becomes a hard copy of the student after each `every`
    steps. `every` = 1 is a live teacher, 0 a frozen one.

    Args:
        completed: training steps completed so far, from 0.
        every: teacher.refresh_every.
    """
    return completed - completed % every if every else 0


def refresh_due(completed: int, every: int) -> bool:
    """Whether the teacher takes the student's weights before the next step; at 0, the initial policy's."""
    return copied_at(completed, every) == completed
