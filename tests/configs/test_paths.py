"""What a run writes outlives the folder that Ray unpacks a submitted job into."""

from __future__ import annotations

from pathlib import Path

from hindsight.configs.paths import cache_root, is_upload, lasting


def test_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert lasting("runs/x") == tmp_path / "runs/x"
    assert lasting("~/runs/x") == Path("/home/someone/runs/x")
    assert lasting("/data/x") == Path("/data/x")


def test_a_submitted_job_writes_to_the_home_folder(monkeypatch, tmp_path):
    upload = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    upload.mkdir(parents=True)
    assert is_upload(upload) and not is_upload(tmp_path)
    monkeypatch.chdir(upload)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("HINDSIGHT_CACHE", raising=False)
    assert lasting("runs/x") == Path("/home/someone/hindsight/runs/x")
    assert lasting("/data/x") == Path("/data/x")
    assert cache_root() == Path("/home/someone/.cache/hindsight")
