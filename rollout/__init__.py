"""Rollouts: students on vLLM engines acting in environments, token ids in and token ids out."""
