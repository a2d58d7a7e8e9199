"""What AppWorld's tests share with the processes that they start, which do not import the tests."""

from __future__ import annotations

from pathlib import Path

from hindsight.envs.appworld.env import AppWorldEnv, AppWorldFamily


class ZygoteEnv(AppWorldEnv):
    def _zygote_pid(self) -> int:
        return parent_of(self._server.pid)


class ZygoteFamily(AppWorldFamily):
    def make(self) -> ZygoteEnv:
        return ZygoteEnv(self._zygote(), self._config)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def family_of(pid: int) -> set[int]:
    """The process and its descendants."""
    found = {pid}
    for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) in found:
            found.add(int(path.parent.name))
    return found
