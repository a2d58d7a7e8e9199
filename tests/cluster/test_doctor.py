"""What `hindsight doctor` finds on machines that lack something."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from hindsight.cluster import doctor
from hindsight.cluster.cli import app
from hindsight.cluster.links import Link, LinkError
from hindsight.configs.load import load_config
from hindsight.configs.schema import Env
from hindsight.envs.base import DataMissing
from hindsight.rollout.render import Renderer

Usage = namedtuple("Usage", "total used free")


def test_a_driver_with_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpu_memory", lambda: [80.0, 79.0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = doctor.device()
    assert found.found.startswith("2 with 79 GiB, 0 usable") and "VARIANT=gpu make setup" in found.fix
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not doctor.device().fix
    monkeypatch.setattr(doctor, "gpu_memory", list)
    assert doctor.device() == doctor.Finding("GPU", "none: runs use the CPU")


def test_links_are_checked_where_there_are_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert doctor.links() == doctor.Finding("NCCL", "not checked: a pair needs two GPUs, and torch can use 1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor, "measure_links", lambda count, backend: [Link((0, 1), 0.001, 200.0)])
    assert doctor.links().found.startswith("1 pair, 200.0") and not doctor.links().fix

    def hangs(*_: Any) -> Any:
        raise LinkError("nccl between GPUs 0-1 did not end within 180 s")

    monkeypatch.setattr(doctor, "measure_links", hangs)
    assert "0-1 did not end" in doctor.links().fix and "NCCL_P2P_DISABLE" in doctor.links().fix


@pytest.mark.parametrize("preset", ["history", "window"])
def test_an_episode_in_the_models_template(preset: str, monkeypatch: pytest.MonkeyPatch, nano: Path) -> None:
    found = doctor.template(load_config("nano", [f"prompt.preset={preset}"]))
    assert "an episode of two turns has" in found.found and not found.fix
    monkeypatch.setattr(Renderer, "respond", lambda self, action: self.encode("no tags"))
    assert "no action is found in the response 'no tags'" in doctor.template(load_config("nano")).fix
    monkeypatch.setattr(doctor, "resolve", lambda _: "/no/folder")
    assert doctor.template(load_config("nano")).found.startswith("not checked: nano cannot be read here")


def test_full_disks_and_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 2**26))
    shared, runs, caches = list(doctor.memory())[1:]
    assert "--shm-size" in shared.fix and "`out`" in runs.fix and "HINDSIGHT_CACHE" in caches.fix
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 0, 2**40))
    assert not any(found.fix for found in doctor.memory())


def test_a_port_in_use_and_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.dashboard_port(port).found == f"{port} is in use" and doctor.dashboard_port(port).fix
    assert not doctor.dashboard_port(0).fix
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "g++" in doctor.compiler().fix


def test_an_environment_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(env: Env) -> Any:
        raise DataMissing(f"{env.name} has no data: download it")

    monkeypatch.setattr(doctor, "make_family", lacks)
    assert doctor.environment("webshop", needed=True).fix == "webshop has no data: download it"
    assert doctor.environment("webshop", needed=False) == doctor.Finding(
        "webshop", "not ready: webshop has no data: download it"
    )


def test_a_run_that_does_not_fit() -> None:
    found = doctor.fits(load_config("alfworld_7b_gpu"))
    assert found.found == "does not fit on this machine" and "cluster.gpus = required" in found.fix
    assert doctor.fits(load_config("nano")).found == "1 engine, 1 learner, 1 teacher"


def test_the_miniature_reports_seconds_or_the_end_of_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"kind": "train", "time/learner": 1.25, "weight_sync/logprob_gap": 2e-6}

    def trains(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        [out] = [word.removeprefix("out=") for word in command if word.startswith("out=")]
        assert "cluster.gpus=required" in command
        Path(out).mkdir()
        Path(out, "metrics.jsonl").write_text(json.dumps(row))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", trains)
    _, seconds, gap = doctor.miniature(gpu=True)
    assert seconds.found == "1.2 s" and gap.found.startswith("2.0e-06 nats") and not gap.fix
    failing = subprocess.CompletedProcess([], 1, "", "no GPU")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failing)
    [failed] = doctor.miniature(gpu=True)
    assert (failed.found, failed.fix) == ("failed", "no GPU")

    def hangs(command: list[str], timeout: float, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    [late] = doctor.miniature(gpu=False)
    assert late.found == "not done within 900 s" and "hindsight train nano" in late.fix


def test_the_command_counts_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [doctor.Finding("RAM", "1 GiB"), doctor.Finding("compiler", "no g++", "install g++")]
    monkeypatch.setattr(doctor, "examine", lambda config: iter(findings))
    done = CliRunner().invoke(app, ["doctor", "nano"])
    assert done.exit_code == 1 and "install g++" in done.output and "✓ RAM: 1 GiB" in done.output
    monkeypatch.setattr(doctor, "examine", lambda config: iter(findings[:1]))
    assert CliRunner().invoke(app, ["doctor", "nano"]).exit_code == 0
