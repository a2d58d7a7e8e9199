"""Where vLLM's processes meet: sockets that a killed process leaves behind, and the next one removes."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

VARIABLE = "VLLM_RPC_BASE_PATH"  # read by vLLM; by default the temporary folder itself
LONGEST = 107 - len("/") - 36  # of a folder's path: Linux's limit for a socket's path, whose name is a UUID
YOUNG = 60.0  # seconds in which a socket may be about to listen


def use_own_folder() -> None:
    """Make vLLM keep its sockets in a folder of this user, from which dead ones are removed first."""
    folder = Path(tempfile.gettempdir(), f"hindsight-sockets-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or len(str(folder)) > LONGEST:
        return
    for one in folder.iterdir():
        if _is_dead(one):
            one.unlink(missing_ok=True)  # another engine may do the same
    os.environ[VARIABLE] = str(folder)


def _is_dead(path: Path) -> bool:
    """Whether nobody listens on a socket."""
    try:
        if time.time() - path.stat().st_mtime < YOUNG:
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False
