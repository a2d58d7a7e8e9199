"""`benchmarks.gpu` goes on after a part that failed or took too long, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from benchmarks import gpu
from benchmarks.gpu_parts import Run


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LIMITS", {"versions": 0.05, "no such part": 60})
    monkeypatch.setattr(gpu, "SLOWER", 1)
    assert not gpu.every(Run("all", tmp_path, small=True), ["versions", "no such part"])
    late, failed = map(json.loads, (tmp_path / "gpu.jsonl").read_text().splitlines())
    assert (late["part"], late["ended"]) == ("versions", "not done within 0.05 s")
    assert failed["part"] == "no such part" and failed["ended"] == 2
    assert "the parts are versions, ceilings" in capsys.readouterr().out


def test_every_part_has_a_limit() -> None:
    with pytest.raises(typer.BadParameter, match="wrong: the parts are versions"):
        gpu.main("all", parts="versions,wrong", out=Path("unused"), small=True)
