"""What an engine does while it starts. vLLM's log tells: the actor answers nothing before it has started.

    vLLM's processes ──log──► Parts, a handler in each ──► file in the run's folder ──► `said`, in the driver

Where an engine's node does not share that folder, nothing more is known of its start.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path

PARTS = {  # what a message begins, or has ended
    "Initializing a V1 LLM engine": "reading the configuration",
    "Starting to load model": "loading the model",
    "Model loading took": "measuring memory",
    "Using cache directory": "compiling the model",
    "Directly load": "loading what an earlier start compiled",
    "Warming up model": "warming up the compiled model",
    "KV cache size": "warming up, capturing CUDA graphs",
}
FIRST = "importing vLLM"  # in the actor, and then in vLLM's own process
FILE = "HINDSIGHT_ENGINE_STARTING"  # environment variable: the file that tells of this engine's start
CONFIG = "VLLM_LOGGING_CONFIG_PATH"


class Parts(logging.Handler):
    """Writes down which part of the start a message belongs to."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note the part, if the message is of PARTS."""
        part, file = part_of(str(record.msg)), os.environ.get(FILE)
        if part and file:
            _write(Path(file), part)


def part_of(message: str) -> str | None:
    """The part of the start that a message of vLLM's log belongs to."""
    return next((part for begins, part in PARTS.items() if begins in message), None)


def file_of(folder: Path | str, engine: int) -> Path:
    """The file that tells of an engine's start."""
    return Path(folder) / f"engine-{engine}.starting"


@contextmanager
def telling(file: Path) -> Iterator[None]:
    """Have this process and those that vLLM starts in the block tell what they do.

    A configuration of logging that the user has set stays.
    """
    _write(file, FIRST)
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    config = deepcopy(DEFAULT_LOGGING_CONFIG)
    config["handlers"]["parts"] = {"class": f"{__name__}.{Parts.__name__}", "level": "INFO"}
    config["loggers"]["vllm"] |= {"handlers": ["vllm", "parts"], "level": "INFO"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as written:
        json.dump(config, written)
        written.flush()
        added = {FILE: str(file)} | ({} if CONFIG in os.environ else {CONFIG: written.name})
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]
            with suppress(OSError):
                file.unlink()


def _write(file: Path, part: str) -> None:
    with suppress(OSError):  # the folder is on another node
        file.write_text(part)


def said(files: Sequence[Path], otherwise: str) -> str:
    """What engines do now, in words: of the one, or how many do what."""
    parts: Counter[str] = Counter()
    for file in files:
        with suppress(OSError):
            parts[file.read_text() or otherwise] += 1
    if len(files) == 1 or (len(parts) < 2 and parts.total() == len(files)):
        return next(iter(parts), otherwise)
    rest = len(files) - parts.total()
    parts += Counter({otherwise: rest})
    return ", ".join(f"{part} ({count})" for part, count in parts.items())
