"""Where metrics go in addition to metrics.jsonl: TensorBoard, Ray's metrics, hosted services, or your own."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from hindsight.cluster.report.definitions import find_definition, full_name, gauge
from hindsight.cluster.report.run_folder import COLD, CONFIG
from hindsight.configs.registry import TRACKERS
from hindsight.configs.schema import Tracking

PROJECT = "hindsight"  # of hosted services
REFRESH = 10.0  # seconds; Ray's metrics endpoint drops a gauge about 20 s after it was set


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

    @property
    def config(self) -> str:
        """The resolved settings of the run, as YAML; "" for rows without a run."""
        file = self.folder / CONFIG
        return file.read_text() if file.exists() else ""

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        """Record one row; all values are finite.

        Args:
            kind: "train", "sft" or "eval".
            stage: of an evaluation, such as "during RL"; None for other rows.
        """

    def now(self, values: Mapping[str, float]) -> None:
        """Show figures of the moment, which come every few seconds; by default they are not shown."""

    def close(self) -> None:
        """Flush what is buffered. Called once, at the end of the run."""


def series(kind: str, values: Mapping[str, float], stage: str | None) -> dict[str, float]:
    """A row's values by the name of the curve they belong to: the topic, "/", and the rest.

    The evaluation before the warm start has the step of the one after it, so it is no part of their curves.
    """
    apart = f" {stage}" if stage == COLD else ""
    return {f"{full_name(kind, name)}{apart}": value for name, value in values.items()}


class TensorBoard(Tracker):
    """TensorBoard events in the run's folder, with the resolved settings as text."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(settings, folder)
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._described: set[str] = set()
        self._board.add_text("settings", f"```yaml\n{self.config}\n```")

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        points = Summary()
        for name, value in series(kind, values, stage).items():
            point = points.value.add(tag=name, simple_value=value)
            if name not in self._described:  # torch's own method has no description
                plugin = SummaryMetadata.PluginData(plugin_name="scalars")
                point.metadata.CopyFrom(SummaryMetadata(plugin_data=plugin, summary_description=about(name)))
                self._described.add(name)
        self._board._get_file_writer().add_summary(points, step)
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class RayMetrics(Tracker):
    """Gauges of Ray's metrics, for the dashboard and Prometheus: ray_hindsight_rollout_success, …

    Each has the tags `run`, the run's folder, and `stage`, of an evaluation. `ray_hindsight_running` is 1
    while the run is going.
    """

    def __init__(self, settings: Tracking, folder: Path) -> None:
        super().__init__(settings, folder)
        self._gauges: dict[str, Any] = {}
        self._last: dict[tuple[str, str], float] = {}  # by name and stage
        self._setting, self._closed = threading.Lock(), threading.Event()
        self._set("running", "", 1.0)
        self._refreshing = threading.Thread(target=self._refresh, name="ray-metrics", daemon=True)
        self._refreshing.start()

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        with self._setting:
            for name, value in values.items():
                self._set(full_name(kind, name), stage or "", value)

    def now(self, values: Mapping[str, float]) -> None:
        with self._setting:
            for name, value in values.items():
                self._set(name, "", value)

    def _set(self, name: str, stage: str, value: float) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            plain = about(name).encode("ascii", "replace").decode()  # Ray takes nothing else
            self._gauges[name] = Gauge(gauge(name), description=plain, tag_keys=("run", "stage"))
        self._last[name, stage] = value
        self._gauges[name].set(value, tags={"run": str(self.folder), "stage": stage})

    def _refresh(self) -> None:
        """Set every gauge again to its last value, until closed."""
        while not self._closed.wait(REFRESH):
            with self._setting:
                for (name, stage), value in self._last.items():
                    self._set(name, stage, value)

    def close(self) -> None:
        self._closed.set()
        self._refreshing.join()


class Wandb(Tracker):
    """Weights & Biases; where and for whom is said by its WANDB_* environment variables."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        import wandb

        super().__init__(settings, folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=identity(folder / "wandb.id"),
            resume="allow",
            dir=str(folder),
            config=yaml.safe_load(self.config),
        )
        self._run.define_metric("*", step_metric="step")
        self._run.define_metric("sft/*", step_metric="sft/step")

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        self._run.log({"sft/step" if kind == "sft" else "step": step, **series(kind, values, stage)})

    def close(self) -> None:
        self._run.finish()


class MLflow(Tracker):
    """MLflow; where is said by its MLFLOW_* environment variables."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        import mlflow

        super().__init__(settings, folder)
        self._mlflow, file = mlflow, folder / "mlflow.id"
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        known = file.read_text() if file.exists() else None
        file.write_text(mlflow.start_run(run_id=known, run_name=folder.name).info.run_id)
        mlflow.log_text(self.config, CONFIG)

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        self._mlflow.log_metrics(series(kind, values, stage), step=step, synchronous=False)

    def close(self) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run()


class Trackio(Tracker):
    """Trackio, on this machine; its TRACKIO_* environment variables say more."""

    def __init__(self, settings: Tracking, folder: Path) -> None:
        import trackio

        super().__init__(settings, folder)
        name = f"{folder.name}-{identity(folder / 'trackio.id')}"
        self._run = trackio.init(
            project=PROJECT, name=name, resume="allow", config=yaml.safe_load(self.config)
        )

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        self._run.log(series(kind, values, stage), step=step)

    def close(self) -> None:
        self._run.finish()


def about(name: str) -> str:
    """A metric's description with its unit; its name if it has none."""
    one = find_definition(name.partition(" ")[0])
    return " ".join(filter(None, [one.about, one.unit and f"Unit: {one.unit}."])) if one else name


def identity(file: Path) -> str:
    """What a service knows the run by, kept in a file: a resumed run is the same run there."""
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    return file.read_text()


def make_trackers(settings: Tracking, folder: Path) -> list[Tracker]:
    """The trackers that `tracker.names` names."""
    complete = TRACKERS.complete(settings)
    return [TRACKERS.find(name)(complete, folder) for name in settings.names]
