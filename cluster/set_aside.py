"""Tasks that are set aside: their groups were lost by their own fault, so the run no longer trains on them.

`OUT/failures.jsonl` has one line for each, and nothing else says so: a line that is deleted while the run is
stopped gives its task back to the run that resumes. A prompt that was too long is looked at again anyway
(`first_prompts.py`): the settings may have changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from hindsight.cluster.failures import RunError
from hindsight.envs.runtime.files import atomic_write
from hindsight.envs.tasks import TaskSpec

MOST = 0.2  # share of the training tasks; if more fail, it is not the tasks
FEW = 2  # that many may always be set aside, as long as a task is left


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class SetAside:
    """Why a task was set aside: a line of failures.jsonl."""

    task: str  # TaskSpec.id
    kind: str  # of the most frequent failure of its last group
    message: str
    groups: int  # lost in a row; 0: its first prompt was measured before training
    step: int  # finished training steps
    time: str = ""  # UTC

    def __str__(self) -> str:
        if not self.groups:
            return f"{self.task} ({self.kind}: {self.message})"
        lost = f"{self.groups} groups in a row" if self.groups > 1 else "a group"
        return f"{self.task} ({lost} lost to {self.kind}: {self.message})"


class SetAsideTasks:
    """The tasks that are set aside, kept in a file."""

    def __init__(self, file: Path, tasks: Sequence[TaskSpec], entries: Iterable[SetAside] = ()) -> None:
        """
        Args:
            tasks: all training tasks.
        """
        self.file, self.entries = file, list(entries)
        self._known = {task.id for task in tasks}
        self.ids = {entry.task for entry in self.entries}

    @classmethod
    def load(cls, file: Path, tasks: Sequence[TaskSpec], resumes: bool) -> SetAsideTasks:
        """What the file says of a run that resumes; a new run begins with every task.

        Raises:
            RunError: a line cannot be read, or there are too many.
        """
        entries = []
        lines = file.read_text().splitlines() if resumes and file.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                known = {one.name: values[one.name] for one in fields(SetAside) if one.name in values}
                entry = SetAside(**known)
            except (ValueError, TypeError) as error:
                raise RunError(
                    f"{file}, line {number}, is not what Hindsight wrote ({error}): delete the line, and its "
                    "task is trained on again"
                ) from error
            if entry.kind != "prompt":
                entries.append(entry)
        held = cls(file, tasks, entries)
        held._require_others()
        return held

    def add(self, *entries: SetAside) -> None:
        """Set tasks aside.

        Raises:
            RunError: too many are.
        """
        self.entries += entries
        self.ids.update(entry.task for entry in entries)
        self.write()
        self._require_others()

    def write(self) -> None:
        """Write the file anew."""
        text = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in self.entries)
        if text or self.file.exists():
            atomic_write(self.file, text, durable=True)

    def _require_others(self) -> None:
        """Raise if the tasks cannot be what is wrong."""
        aside, number = len(self.ids & self._known), len(self._known)
        if aside and (aside == number or aside > max(FEW, MOST * number)):
            raise RunError(
                f"{aside} of {number} training tasks are set aside, so it is the environment or its settings "
                f"rather than single tasks that fail. The last: {self.entries[-1]}. Repair this, delete the "
                f"lines of {self.file}, and resume with resume=auto"
            )
