"""Where metrics go in addition to metrics.jsonl: TensorBoard, Ray's metrics, or a tracker of your own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hindsight.configs.registry import TRACKERS
from hindsight.configs.schema import Tracking


class Tracker:
    """Receives every row of metrics. An own one extends this class."""

    Settings: ClassVar[type[Tracking]] = Tracking

    def __init__(self, settings: Tracking, folder: Path) -> None:
        """
        Args:
            settings: the section `tracker`.
            folder: the run's output folder.
        """
        self.settings, self.folder = settings, folder

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Record one row; all values are finite. `kind` is "train", "sft" or "eval"."""

    def close(self) -> None:
        """Flush what is buffered. Called once, at the end of the run."""


class TensorBoard(Tracker):
    """TensorBoard events in the run's folder."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(settings, folder)
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class RayMetrics(Tracker):
    """Gauges of Ray's metrics, for the dashboard and Prometheus: ray_hindsight_rollout_success, …"""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        super().__init__(settings, folder)
        self._gauges: dict[str, Any] = {}

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        from ray.util.metrics import Gauge

        for name, value in values.items():
            if name not in self._gauges:
                key = "hindsight_" + "".join(c if c.isalnum() else "_" for c in name)
                self._gauges[name] = Gauge(key, description=name)
            self._gauges[name].set(value)


def make_trackers(settings: Tracking, folder: Path) -> list[Tracker]:
    """The trackers that `tracker.names` names."""
    complete = TRACKERS.complete(settings)
    return [TRACKERS.find(name)(complete, folder) for name in settings.names]
