"""Hindsight hints: text about a turn, written after its trajectory has ended."""
