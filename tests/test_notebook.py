"""The notebook runs, cell by cell; it needs no Jupyter, no Ray, and no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hindsight.configs.paths import SOURCE

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples/one_group.ipynb"


def test_one_group_by_hand(tmp_path: Path) -> None:
    """In a process of its own: it sets torch's threads and seed."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    outputs = [out for cell in cells for out in cell.get("outputs", ())]
    assert all(set(out["data"]) == {"image/png"} for out in outputs)
    assert NOTEBOOK.stat().st_size < 100_000
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(code), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": SOURCE, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = done.stdout
    assert "Now solve the current task correctly." in told and "success" in told and "failure" in told
    moved = float(told.rsplit("(change of the log-prob) = ", 1)[1].split()[0])
    assert moved > 0  # good tokens became more likely, bad ones less
