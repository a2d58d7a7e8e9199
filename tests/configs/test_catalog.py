"""The table of methods says what the settings say, and the documentation holds the same table."""

from __future__ import annotations

from pathlib import Path

from hindsight.configs.catalog import COLUMNS, catalog
from hindsight.configs.load import methods

DOCS = Path(__file__).resolve().parents[2] / "docs/methods.md"


def test_rows_are_read_off_the_settings() -> None:
    rows = {method.name: method for method in catalog()}
    assert rows.keys() == methods().keys()
    serl, hero, grpo = rows["serl"], rows["hero"], rows["grpo"]
    assert (serl.credit, serl.feedback) == ("grpo, over turns", "immediate, per step")
    assert (serl.signal, serl.teacher) == ("weight of action tokens", "copy every 10 steps")
    assert (hero.credit, hero.signal, hero.teacher) == ("–", "distill: JSD, β = 0.5", "EMA 0.95 every step")
    assert (grpo.feedback, grpo.signal, grpo.teacher) == ("–", "–", "–")


def test_the_documentation_agrees_with_the_settings() -> None:
    """A method that is added need not be documented here; what is documented has to be true."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    head = lines.index("| " + " | ".join(COLUMNS) + " |")
    documented = [line for line in lines[head + 2 : lines.index("", head)]]
    assert len(documented) >= 21
    assert set(documented) <= {"| " + " | ".join(method.cells) + " |" for method in catalog()}
