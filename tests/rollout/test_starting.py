"""What an engine's start is said to do, from vLLM's log."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hindsight.rollout.starting import CONFIG, FILE, FIRST, Parts, file_of, part_of, said, telling

CHILD = """
import logging
from vllm.config.logging import LoggingConfig
from vllm.logger import configure_logging, init_logger

configure_logging(LoggingConfig())  # as vLLM's processes do first
logger = init_logger("vllm.v1.engine.core")
logger.info("Starting to load model %s...", "nano")
logger.info("of no part")
logger.error("an error")
"""


def test_processes_of_vllm_tell_what_they_do(tmp_path: Path) -> None:
    """Those that are started in the block; what they log is printed as before."""
    file = file_of(tmp_path, 3)
    with telling(file):
        assert file.read_text() == FIRST
        env = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
        done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True)
        assert file.read_text() == "loading the model", done.stderr
    assert not file.exists() and not {CONFIG, FILE} & set(os.environ)
    printed = done.stdout + done.stderr
    assert "an error" in printed and "Starting to load" not in printed and "of no part" not in printed


def test_a_folder_on_another_node_is_no_failure(tmp_path: Path) -> None:
    message = logging.makeLogRecord({"msg": "Starting to load model %s..."})
    with telling(file_of(tmp_path / "nowhere", 0)):
        Parts().emit(message)
    assert not (tmp_path / "nowhere").exists()
    with telling(file_of(tmp_path, 0)):
        Parts().emit(message)
        assert file_of(tmp_path, 0).read_text() == "loading the model"


def test_a_users_own_configuration_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG, "mine.json")
    with telling(file_of(tmp_path, 0)):
        assert os.environ[CONFIG] == "mine.json"
    assert os.environ[CONFIG] == "mine.json" and FILE not in os.environ


def test_messages_belong_to_parts() -> None:
    assert part_of("%sUsing cache directory: %s for vLLM's torch.compile") == "compiling the model"
    assert part_of("%sDirectly load AOT compilation from path %s").startswith("loading what an earlier")
    assert part_of("something else") is None


def test_engines_are_told_together(tmp_path: Path) -> None:
    files = [file_of(tmp_path, index) for index in range(3)]
    assert said(files[:1], "starting") == "starting" and said(files, "starting") == "starting (3)"
    files[0].write_text("loading the model")
    assert said(files[:1], "starting") == "loading the model"
    assert said(files, "starting") == "loading the model (1), starting (2)"
    for file in files:
        file.write_text("loading the model")
    assert said(files, "starting") == "loading the model"
