"""Hindsight: dense credit for multi-turn LLM agents from hindsight feedback, on Ray, vLLM and DeepSpeed."""
