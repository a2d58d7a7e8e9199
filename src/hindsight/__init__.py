"""Hindsight: dense credit for multi-turn LLM agents from hindsight feedback, on Ray, vLLM and DeepSpeed."""

import os
import sys

# Folders of a run's own modules, which actors must be able to import. Last, so that they shadow nothing.
sys.path += [path for path in os.environ.get("HINDSIGHT_PLUGINS", "").split(os.pathsep) if path]
