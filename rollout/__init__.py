"""Rollouts: the student acts in environments through vLLM engines, with token ids in and out."""
