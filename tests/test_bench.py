"""`make bench`: what its commands print is read, compared with records and told in a table."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from benchmarks import bench, trl_step
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


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is written; the rows are ROW and COST."""
    for name, file in {"RESULTS": "RESULTS.md", "FIGURES": "results.yaml", "RECORDS": "records.yaml"}.items():
        monkeypatch.setattr(bench, name, tmp_path / file)
    monkeypatch.setattr(bench, "ROWS", (ROW, COST))
    monkeypatch.setattr(bench, "machine", lambda: "a machine")
    return tmp_path


def answer(monkeypatch: pytest.MonkeyPatch, **outcomes: list[Outcome]) -> None:
    """Let commands have these outcomes, one after the other; `some_small` is `some --small`."""

    def run(command: str, limit: float) -> Outcome:
        return outcomes[command.replace(" --", "_")].pop(0)

    monkeypatch.setattr(bench, "run", run)


def test_a_printed_ratio_is_read_again() -> None:
    output = f"a table\n{ratio_line('a ÷ b: both', [1.0, 3.0, 2.0])}\nratio of something\n"
    assert read_ratios(output) == {"a ÷ b: both": Ratio(2.0, 1.0, 3.0)}


@pytest.mark.parametrize(
    ("value", "less", "worse"),
    [(0.74, False, True), (0.76, False, False), (1 / 0.74, True, True), (1 / 0.76, True, False)],
)
def test_a_ratio_may_fall_by_a_quarter_of_its_record(value: float, less: bool, worse: bool) -> None:
    assert is_worse(8 * value, 8.0, less) is worse
    assert is_worse(math.nan, 8.0, less)


def test_the_better_of_two_tries_counts() -> None:
    records = {ROW.name: 4.0, COST.name: 2.0}
    assert "2.000, more than 25% worse than its record, 4.000" in judged(ROW, [measured(ROW, 2.0)], records)
    assert judged(ROW, [measured(ROW, 2.0), measured(ROW, 3.5)], records) == ""
    assert judged(COST, [measured(COST, 3.0), measured(COST, 2.1)], records) == ""
    assert judged(ROW, [measured(ROW, math.nan), measured(ROW, 3.5)], records) == ""


def test_what_was_not_measured_or_has_no_record_is_wrong() -> None:
    assert "failed" in judged(ROW, [Outcome(error="failed")], {ROW.name: 1.0})
    assert "no figure `ratio a/b`" in judged(ROW, [Outcome()], {ROW.name: 1.0})
    assert "no record" in judged(ROW, [measured(ROW, 2.0)], {})


def test_the_table_says_what_is_reached_and_why_not() -> None:
    assert reached(ROW, measured(ROW, 2.0)) == "yes"
    assert reached(ROW, measured(ROW, 1.9)) == "no: not explained yet"
    assert reached(COST, measured(COST, 3.1)).startswith("no")
    assert reached(Row("e", why="there is none"), Outcome()) == "not measured: there is none"
    assert reached(ROW, Outcome(error="did not end within 1 s")) == "not measured: did not end within 1 s"
    text = page([ROW, COST], {ROW.command: replace(measured(ROW, 2.5), where="a machine")})
    assert "| a ÷ b | 2.500 [2.500, 2.500] | ≥ 2 | yes |" in text
    assert "| c ÷ d | – | ≤ 3 | not measured: not run yet |" in text
    ran, left = text.split("a machine")[1].split("Not run yet")
    assert "`python -m benchmarks.some --option` | a ÷ b |" in ran
    assert "`python -m benchmarks.some` | c ÷ d |" in left


def test_the_committed_page_is_made_from_the_committed_figures() -> None:
    made = page(ROWS, bench.read_results())
    write = "from benchmarks import bench; bench.write_results(bench.read_results())"
    assert bench.RESULTS.read_text() == made, f"run: python -c '{write}'"


def test_some_rows_can_be_measured_again(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    answer(monkeypatch, some_option=[measured(ROW, 1.0), measured(ROW, 2.0)], some=[measured(COST, 3.0)])
    assert bench.measure([ROW, COST]) == []
    monkeypatch.setattr(bench, "machine", lambda: "another one")
    assert bench.measure([ROW]) == []
    assert bench.read_results() == {
        ROW.command: replace(measured(ROW, 2.0), where="another one"),
        COST.command: replace(measured(COST, 3.0), where="a machine"),
    }
    assert bench.RESULTS.read_text() == page([ROW, COST], bench.read_results())


def test_a_command_that_fails_is_told_once_all_have_run(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    answer(monkeypatch, some_option=[Outcome(error="failed")], some=[measured(COST, 3.0)])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    assert "| not measured: failed |" in bench.RESULTS.read_text()
    assert "| 3.000 [3.000, 3.000] |" in bench.RESULTS.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": True}, "add --quick"),
        ({"only": "typo"}, r"'typo'(.|\n)*a ÷ b\nc ÷ d"),
        ({"only": "typo", "quick": True}, r"'typo'(.|\n)*a ÷ b\nc ÷ d"),
    ],
)
def test_options_without_effect_are_refused(files: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        bench.main(**options)


def test_versions_are_also_those_of_what_only_commands_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    information = tmp_path / "trl-1.2.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.2.3\n")
    monkeypatch.setattr(bench, "COMPARED", tmp_path)
    assert "trl 1.2.3" in bench.versions()


def test_the_settings_of_both_sides_of_a_step_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, list[str]] = {}

    def load(recipe: str, overrides: list[str]) -> None:
        given["theirs"] = overrides

    def train(recipe: str, method: str, steps: int, overrides: list[str]) -> list[dict[str, float]]:
        given["ours"] = [f"method={method}", *overrides]
        return [{"time/step": 1.0}]

    monkeypatch.setattr(trl_step, "load_config", load)
    monkeypatch.setattr(trl_step, "train", train)
    monkeypatch.setattr(trl_step, "train_trl", lambda config, steps: [2.0])
    trl_step.main(["nano", "seed=3"])
    assert given["ours"] == given["theirs"]
    assert "seed=3" in given["ours"]


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


def test_the_quick_commands_end_within_five_minutes() -> None:
    """If none needs a second try."""
    assert len({row.quick for row in ROWS if row.quick}) * bench.QUICK_LIMIT <= 300


def test_what_is_worse_is_measured_again(monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    bench.RECORDS.write_text(yaml.safe_dump({ROW.name: 4.0, COST.name: 3.0}))
    answer(monkeypatch, some_small=[measured(ROW, 1.0), measured(ROW, 3.9)], some=[measured(COST, 3.0)])
    assert bench.check_quick([ROW, COST]) == []
    answer(monkeypatch, some_small=[measured(ROW, 1.0), measured(ROW, 1.1)], some=[measured(COST, 3.0)])
    assert len(bench.check_quick([ROW, COST])) == 1


def test_new_records_are_those_of_rows_that_were_measured(
    monkeypatch: pytest.MonkeyPatch, files: Path
) -> None:
    bench.RECORDS.write_text(yaml.safe_dump({ROW.name: 4.0, COST.name: 3.0}))
    for missing in (Outcome(error="failed"), measured(COST, math.nan), Outcome()):
        answer(monkeypatch, some_small=[measured(ROW, 5.0)], some=[missing])
        with pytest.raises(SystemExit) as ended:
            bench.main(quick=True, record=True)
        assert ended.value.code == 1
        assert yaml.safe_load(bench.RECORDS.read_text()) == {ROW.name: 5.0, COST.name: 3.0}


@pytest.mark.parametrize("name", ["drawn", "toy"])
def test_environments_of_benchmarks_can_be_trained_on(name: str) -> None:
    family = make_family(Env(name=str(bench.HERE / f"{name}.py")))
    manifest = family.manifest()
    assert find_panels(family, manifest, ["evaluation"])[0].tasks
    assert family.make().reset(manifest.train[0]).text


def test_drawn_tasks_have_prompts_of_their_own() -> None:
    """A replay finds the seeds of a request by its prompt."""
    family = make_family(Env(name=str(bench.HERE / "drawn.py")))
    tasks = family.manifest().train
    assert len({family.make().reset(task).text for task in tasks}) == len(tasks)
