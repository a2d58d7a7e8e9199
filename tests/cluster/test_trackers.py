"""Trackers: what each is told of a row, and what happens to those whose package is not installed."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.util.metrics

from hindsight.cluster import trackers
from hindsight.cluster.evaluate import Stage
from hindsight.cluster.metrics import Metrics, TrackerError
from hindsight.cluster.run import close_metrics
from hindsight.configs import packages
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.schema import Tracking

TRAINED = {"rollout/success": 0.5, "rollout/own": 7.0, "rollout/λ": 1.0, "learner/loss": float("nan")}
ROWS: list[tuple[int, str, dict[str, float], str | None]] = [
    (1, "sft", {"loss": 2.0}, None),
    (0, "eval", {"eval/success": 0.1}, Stage.BEFORE_SFT),
    (0, "eval", {"eval/success": 0.3}, Stage.AFTER_SFT),
    (1, "train", TRAINED, None),
    (1, "eval", {"eval/success": 0.6}, Stage.AFTER_RL),
]


def write(folder: Path, name: str) -> None:
    """A short run of rows with one tracker."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("steps: 1\nmodel:\n  path: nano\n")
    metrics = Metrics(folder, Tracking(names=[name]))
    metrics.start()
    for row in ROWS:
        metrics.write(*row)
    metrics.close()


class Gauge:
    """Of Ray's metrics, without Ray."""

    made: dict[str, Gauge]

    def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
        assert name not in self.made, "registered twice"
        assert name.isascii() and description.isascii()  # or Ray raises UnicodeEncodeError
        self.made[name] = self
        self.description, self.tag_keys, self.values, self.calls = description, tag_keys, {}, 0

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.calls += 1
        self.values[tags["run"], tags["stage"]] = value


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    Gauge.made = {}
    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    return Gauge.made


def test_gauges_tell_runs_and_stages_apart(gauges: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "run", "ray")
    run = str(tmp_path / "run")
    assert gauges["hindsight_eval_success"].values == {
        (run, "before warm start"): 0.1,
        (run, "after warm start"): 0.3,
        (run, "after RL"): 0.6,
    }
    assert gauges["hindsight_rollout_success"].values == {(run, ""): 0.5}
    assert gauges["hindsight_sft_loss"].values == {(run, ""): 2.0}
    assert gauges["hindsight_running"].values == {(run, ""): 1.0}
    assert gauges["hindsight_rollout_success"].description == (
        "Training episodes that succeeded. Unit: share."
    )
    assert gauges["hindsight_rollout_own"].description == "rollout/own"
    assert gauges["hindsight_rollout__"].description == "rollout/?"
    assert "hindsight_learner_loss" not in gauges  # it was not finite


def test_figures_of_the_moment_are_gauges_and_no_rows(gauges: dict[str, Any], tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, Tracking(names=["ray", "tensorboard"]))
    metrics.start()
    metrics.now({"now/decoding_0": 3.0, "now/in_flight": 8.0})
    metrics.now({"now/decoding_0": 5.0})
    metrics.close()
    assert metrics.rows() == []
    assert gauges["hindsight_now_decoding_0"].values == {(str(tmp_path), ""): 5.0}
    assert gauges["hindsight_now_decoding_0"].description.startswith("Requests in the batch of engine n.")
    assert gauges["hindsight_now_in_flight"].values == {(str(tmp_path), ""): 8.0}


def test_gauges_are_set_again_until_the_run_ends(
    gauges: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "REFRESH", 0.01)
    tracker = trackers.RayMetrics(Tracking(), tmp_path)
    tracker.write(1, "train", {"rollout/success": 0.5})
    deadline = time.monotonic() + 30
    while min(gauges[f"hindsight_{name}"].calls for name in ("running", "rollout_success")) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert gauges["hindsight_rollout_success"].values == {(str(tmp_path), ""): 0.5}
    tracker.close()
    calls = gauges["hindsight_running"].calls
    time.sleep(0.1)
    assert gauges["hindsight_running"].calls == calls


def test_tensorboard_has_topics_descriptions_and_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    write(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def curve(tag: str) -> list[tuple[int, float]]:
        return [(one.step, round(float(one.tensor_proto.float_val[0]), 3)) for one in events.Tensors(tag)]

    assert curve("eval/success") == [(0, 0.3), (1, 0.6)]
    assert curve("eval/success before warm start") == [(0, 0.1)]
    assert curve("rollout/success") == [(1, 0.5)] and curve("sft/loss") == [(1, 2.0)]
    about = events.SummaryMetadata("rollout/success")
    assert about.summary_description == "Training episodes that succeeded. Unit: share."
    assert about.plugin_data.plugin_name == "scalars"
    [settings] = events.Tensors("settings/text_summary")
    assert b"path: nano" in settings.tensor_proto.string_val[0]


def test_hosted_trackers_are_told_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def note(what: str) -> Any:
        return lambda *given, **more: said.append((what, *given, more))

    def start(**given: Any) -> Any:
        said.append(("start", given))
        run = {name: note(name) for name in ("log", "define_metric", "finish")}
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"), **run)

    names = ("set_experiment", "log_text", "log_metrics", "flush_async_logging", "end_run")
    fake = SimpleNamespace(init=start, start_run=start, **{name: note(name) for name in names})
    curves = {"eval/success before warm start": 0.1}, {"eval/success": 0.3}
    monkeypatch.setattr(packages, "version", lambda package: "1.0")
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake)
        said.clear()
        write(tmp_path / name, name)
        write(tmp_path / name, name)  # resumed
        first, again = (given for what, given, *_ in said if what == "start")
        told = [given for what, *given in said if what in ("log", "log_metrics")]
        assert len(told) == 2 * len(ROWS)
        if name == "mlflow":
            assert (first["run_id"], again["run_id"]) == (None, "r1")
            assert [values for values, _ in told[1:3]] == [*curves]
            assert [more["step"] for _, more in told[:4]] == [1, 0, 0, 1]
        else:
            assert first == again and first["config"] == {"steps": 1, "model": {"path": "nano"}}
            steps = [{"step": 0}, {"step": 0}] if name == "wandb" else [{}, {}]
            assert [values for values, _ in told[1:3]] == [s | c for s, c in zip(steps, curves, strict=True)]
        assert said[-1][0] == ("end_run" if name == "mlflow" else "finish")


def test_a_tracker_that_fails_is_named_and_the_others_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []

    class Flaky(trackers.Tracker):
        def write(self, *_: Any) -> None:
            raise ConnectionError("no route")

        def close(self) -> None:
            closed.append(1)
            raise ConnectionError("no route")

    made = [Flaky(Tracking(), tmp_path), Flaky(Tracking(), tmp_path)]
    monkeypatch.setattr("hindsight.cluster.metrics.make_trackers", lambda *_: made)
    metrics = Metrics(tmp_path)
    metrics.start()
    with pytest.raises(TrackerError, match=r"Flaky failed: ConnectionError: no route\..*tracker\.names"):
        metrics.write(1, "train", {"loss": 1.0})
    assert [row["loss"] for row in metrics.rows()] == [1.0]
    with pytest.raises(TrackerError, match="Flaky failed"):
        metrics.close()
    assert len(closed) == 2
    said: list[str] = []
    for error in (TrackerError, KeyError):  # what ends a run is not hidden by a tracker that fails as well
        with pytest.raises(error), ExitStack() as stack:
            stack.push(partial(close_metrics, metrics, SimpleNamespace(say=said.append)))
            if error is KeyError:
                raise KeyError
    assert len(said) == 1 and "Flaky failed" in said[0]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named_with_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(packages, "version", version)
    with pytest.raises(ConfigError, match=f"needs the package {name}: pip install {name}$"):
        load_config(None, [f"tracker.names=[{name}]"])
