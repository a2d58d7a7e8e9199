"""Draws TauBench's conversations: messages as text, calls with their results."""

from __future__ import annotations

from hindsight.envs.drawing import tool_calls as blocks

__all__ = ["blocks"]
