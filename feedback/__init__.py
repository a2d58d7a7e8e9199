"""Hindsight texts: what is known after the fact about a turn."""
