"""`make bench`: what its commands print is read, compared with records and told in a table."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from benchmarks import bench
from benchmarks.bench import Outcome, execute, is_worse, judged, page, reached
from benchmarks.ratio import Ratio, ratio_line, read_ratios
from benchmarks.rows import ROWS, Row

from hindsight.configs.schema import Env
from hindsight.envs.panels import find_panels
from hindsight.envs.registry import make_family

ROW = Row("a ÷ b", "some --option", "a/b", target=2.0, quick="some --small")
COST = Row("c ÷ d", "some", "c/d", target=3.0, less=True, quick="some")


def measured(row: Row, median: float) -> Outcome:
    return Outcome({row.ratio: Ratio(median, median, median)})


def test_a_printed_ratio_is_read_again() -> None:
    output = f"a table\n{ratio_line('a ÷ b: both', [1.0, 3.0, 2.0])}\nratio of something\n"
    assert read_ratios(output) == {"a ÷ b: both": Ratio(2.0, 1.0, 3.0)}


@pytest.mark.parametrize(
    ("value", "less", "worse"),
    [(0.74, False, True), (0.76, False, False), (1 / 0.74, True, True), (1 / 0.76, True, False)],
)
def test_a_ratio_may_fall_by_a_quarter_of_its_record(value: float, less: bool, worse: bool) -> None:
    assert is_worse(8 * value, 8.0, less) is worse


def test_the_better_of_two_tries_counts() -> None:
    records = {ROW.name: 4.0, COST.name: 2.0}
    assert "2.000, its record is 4.000" in judged(ROW, [measured(ROW, 2.0)], records)
    assert judged(ROW, [measured(ROW, 2.0), measured(ROW, 3.5)], records) == ""
    assert judged(COST, [measured(COST, 3.0), measured(COST, 2.1)], records) == ""


def test_what_was_not_measured_or_has_no_record_is_wrong() -> None:
    assert "failed" in judged(ROW, [Outcome(error="failed")], {ROW.name: 1.0})
    assert "no line `ratio a/b`" in judged(ROW, [Outcome()], {ROW.name: 1.0})
    assert "no record" in judged(ROW, [measured(ROW, 2.0)], {})


def test_the_table_says_what_is_reached_and_why_not() -> None:
    assert reached(ROW, measured(ROW, 2.0)) == "yes"
    assert reached(ROW, measured(ROW, 1.9)) == "no: not explained yet"
    assert reached(COST, measured(COST, 3.1)).startswith("no")
    assert reached(Row("e", why="there is none"), Outcome()) == "not measured: there is none"
    assert reached(ROW, Outcome(error="did not end within 1 s")) == "not measured: did not end within 1 s"
    text = page([(ROW, measured(ROW, 2.5))], "a machine")
    assert "| a ÷ b | 2.500 [2.500, 2.500] | ≥ 2 | yes |" in text
    assert "`python -m benchmarks.some --option`" in text


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("print('ratio x: 1 [1, 1]')", Outcome({"x": Ratio(1.0, 1.0, 1.0)})),
        ("print('ratio x: 1 [1, 1]'); raise SystemExit(3)", Outcome(error="failed with exit code 3")),
        ("import time; time.sleep(60)", Outcome(error="did not end within 0.5 s")),
    ],
)
def test_a_command_that_fails_or_hangs_is_no_measurement(code: str, found: Outcome) -> None:
    assert execute([sys.executable, "-S", "-c", code], 20.0 if "print" in code else 0.5) == found


def test_every_row_has_a_command_or_a_reason() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        for command in filter(None, (row.command, row.quick)):
            assert find_spec(f"benchmarks.{command.split()[0]}"), row.name
        assert row.why or (row.command and row.ratio), row.name


def test_every_quick_row_has_a_record_and_no_other_has() -> None:
    records = yaml.safe_load(bench.RECORDS.read_text())
    assert set(records) == {row.name for row in ROWS if row.quick}


def test_what_is_worse_is_measured_again_and_new_records_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = [measured(ROW, 1.0), measured(ROW, 3.9), measured(ROW, 5.0)]
    monkeypatch.setattr(bench, "run", lambda command, limit: answers.pop(0))
    monkeypatch.setattr(bench, "RECORDS", tmp_path / "records.yaml")
    bench.RECORDS.write_text(yaml.safe_dump({ROW.name: 4.0}))
    assert bench.check_quick([ROW], record=False) == []
    assert len(answers) == 1
    assert bench.check_quick([ROW], record=True) == []
    assert yaml.safe_load(bench.RECORDS.read_text()) == {ROW.name: 5.0}


@pytest.mark.parametrize("name", ["drawn", "toy"])
def test_environments_of_benchmarks_can_be_trained_on(name: str) -> None:
    family = make_family(Env(name=str(bench.HERE / f"{name}.py")))
    manifest = family.manifest()
    assert find_panels(family, manifest, ["evaluation"])[0].tasks
    assert family.make().reset(manifest.train[0]).text
