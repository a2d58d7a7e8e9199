"""Where figures go: metrics.jsonl, TensorBoard, and Ray's metrics (for the dashboard and Prometheus)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.envs.runtime.files import atomic_write
from hindsight.rollout.types import Group, Trajectory


class Metrics:
    """Writes one row per step to every sink."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self._rewrite(self.rows())  # a run that was killed may have left half a line
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._gauges: dict[str, Any] = {}

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append one row. `kind` is "train", "sft" or "eval"; names are like `rollout/success`."""
        row = {"step": step, "kind": kind, **{name: _plain(value) for name, value in values.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(f"{kind}/{name}", value, step)
                self._gauge(name).set(value)
        self._board.flush()

    def truncate(self, step: int) -> None:
        """Forget training rows after `step`: a resumed run writes them again."""
        self._rewrite([row for row in self.rows() if row["kind"] == "sft" or row["step"] <= step])

    def rows(self) -> list[dict[str, Any]]:
        """Every whole row written so far, a resumed run's earlier part included."""
        whole = self.path.read_text().rpartition("\n")[0] if self.path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def close(self) -> None:
        """Flush TensorBoard."""
        self._board.close()

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            key = "hindsight_" + "".join(c if c.isalnum() else "_" for c in name)
            self._gauges[name] = Gauge(key, description=name)
        return self._gauges[name]


def _plain(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def rollout_metrics(groups: Iterable[Group], seconds: float, version: int) -> dict[str, float]:
    """Figures of one step. `seconds`: wall time of its rollouts; `version`: the learner's weights."""
    groups = list(groups)
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    tokens = sum(turn.end - turn.start for turn in turns)
    if not turns:
        return {"rollout/episodes": 0.0}
    return {
        "rollout/episodes": float(len(trajectories)),
        "rollout/success": float(np.mean([t.success for t in trajectories])),
        "rollout/reward": float(np.mean([t.reward for t in trajectories])),
        "rollout/turns_per_episode": len(turns) / len(trajectories),
        "rollout/tokens_per_turn": tokens / len(turns),
        "rollout/malformed": float(np.mean([turn.malformed for turn in turns])),
        "rollout/inadmissible": float(np.mean([turn.inadmissible for turn in turns])),
        "rollout/tokens_per_second": tokens / seconds,
        "rollout/episodes_per_second": len(trajectories) / seconds,
        "rollout/turns_per_second": len(turns) / seconds,
        "rollout/staleness": float(
            version - min(group.oldest_version for group in groups if group.trajectories)
        ),
        "rollout/mixed_groups": float(
            np.mean([0 < sum(t.success for t in g.trajectories) < len(g.trajectories) for g in groups])
        ),
    }


def write_trajectories(file: Path, trajectories: Iterable[Trajectory]) -> None:
    """One episode a line, as JSON; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(readable(trajectory), ensure_ascii=False) for trajectory in trajectories)
    file.write_text("\n".join(lines) + "\n")


def readable(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a person reads it: one JSON object for trajectories/*.jsonl."""
    return {
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "success": trajectory.success,
        "reward": trajectory.reward,
        "ended": trajectory.ended,
        **({"preamble": trajectory.preamble} if trajectory.preamble else {}),
        "turns": [
            {
                "observation": turn.observation.text,
                "response": turn.response,
                "action": turn.action,
                "valid": turn.valid,
                "feedback": turn.result.feedback,
                "weights": turn.weight_version,
            }
            for turn in trajectory.turns
        ],
    }
