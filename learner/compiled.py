"""DeepSpeed's compiled collectives: built by one process at a time, also after a builder was killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """A block in which no other process builds extensions in `folder`; waits for one that does.

    torch marks a build with a file `lock`. It outlives a killed builder, and every later one would wait for
    its removal forever. The kernel releases our own lock with its process, so its holder may remove the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".builder").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for left in folder.glob("*/lock"):
            left.unlink(missing_ok=True)
        yield


def load_collectives() -> None:
    """Compile or load what `deepspeed.init_distributed` would; which then takes no lock."""
    from deepspeed.comm.torch import build_shm_op

    with only_builder(Path(os.environ["TORCH_EXTENSIONS_DIR"])):
        build_shm_op()
