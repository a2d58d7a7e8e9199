"""`benchmarks.gpu` continues after a part that failed or took too long, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from benchmarks import gpu
from benchmarks.gpu_parts import Run
from benchmarks.gpu_rates import write_rates

from hindsight.cluster.rates import Gpu, figures_for


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


def test_measured_rates_become_a_file_for_the_plan(tmp_path: Path) -> None:
    """456 TFLOP/s at six operations for each of 7.6 billion parameters are 10,000 tokens/s."""
    parts = [
        {"part": "versions", "gpu": "NVIDIA H200"},
        {"part": "teacher", "tokens_per_s": 99_000},  # of a small model
        {"part": "teacher7b", "tokens_per_s": 21_000},
        {"part": "teacher7b", "tokens_per_s": 25_000},
        {"part": "learner7b", "model_tflops": 456, "checkpointing": False},
        {"part": "learner7b", "model_tflops": 500, "checkpointing": True},
    ]
    lines = tmp_path / "gpu.jsonl"
    lines.write_text("".join(f"{json.dumps(part)}\n" for part in parts))
    found = figures_for("alfworld", write_rates(tmp_path))
    assert found.source == "NVIDIA H200, benchmarks.gpu"
    assert (found.gpu.learn, found.gpu.score, found.gpu.decode) == (10_000, 25_000, Gpu().decode)
    assert found.given == {"gpu.billions", "gpu.learn", "gpu.score"}
    lines.write_text(json.dumps(parts[0]) + "\n")
    assert write_rates(tmp_path) is None
