"""Definitions of metrics: none is missing, none is unused, and what is generated from them is up to date."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from hindsight.cluster.failures import KINDS
from hindsight.cluster.report import definitions, grafana
from hindsight.cluster.report.definitions import DEFINITIONS, FAILURES, find_definition, full_name, undefined
from hindsight.cluster.report.run_folder import PHASES

PROJECT = Path(__file__).resolve().parents[2]
WRITERS = ("cluster", "feedback", "learner", "teacher")


def words() -> set[str]:
    """Every text of the code that writes metrics, parts of f-strings and names of fields included."""
    found: set[str] = set()
    for file in (one for folder in WRITERS for one in (PROJECT / folder).rglob("*.py")):
        if file.parent.name == "report":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def unused(names: Iterable[str], written: set[str]) -> list[str]:
    """The definitions of what no code writes."""
    beginnings = tuple(word for word in written if word.endswith("_") and len(word) > 5)  # of f-strings

    def is_written(name: str) -> bool:
        known, last = name.partition("{")[0], name.partition("/")[2].partition("{")[0]
        return bool({known, last} & written) or last.startswith(beginnings)

    listed = {f"failures/{kind}" for kind in KINDS} | {f"time/{phase}" for phase in PHASES}
    return [name for name in names if name not in listed and not is_written(name)]


def test_every_definition_is_of_something_that_is_written() -> None:
    written = words()
    assert unused(DEFINITIONS, written) == []
    assert unused(["rollout/nonsense", "learner/nonsense_{n}"], written) == [
        "rollout/nonsense",
        "learner/nonsense_{n}",
    ]


def test_every_kind_of_failure_is_defined() -> None:
    assert set(KINDS) <= set(FAILURES)


def test_a_metric_without_a_definition_is_named() -> None:
    rows = [
        {"step": 1, "kind": "train", "time": 1.0, "stage": None, "rollout/success": 1.0, "rollout/new": 1.0},
        {"step": 1, "kind": "sft", "loss": 1.0, "restarts": 0.0},
        {"step": 1, "kind": "train", "restarts/engine": 1.0, "restarts/engine_seconds": 2.0},
        {"step": 1, "kind": "eval", "eval/low_trial_12": 1.0, "learner/importance_lag_3": 1.0},
    ]
    assert undefined(rows) == {"rollout/new", "sft/restarts"}


def test_patterns_and_prefixes_lead_to_the_right_definition() -> None:
    assert find_definition("restarts/engine_seconds") is DEFINITIONS["restarts/{role}_seconds"]
    assert find_definition("restarts/engine") is DEFINITIONS["restarts/{role}"]
    assert find_definition("learner/importance_lag_3") is DEFINITIONS["learner/importance_lag_{n}"]
    assert find_definition(full_name("sft", "loss")) is DEFINITIONS["sft/loss"]
    assert find_definition("loss") is None
    assert find_definition("eval/taubench/airline/low_trial_2") is DEFINITIONS["eval/low_trial_{n}"]
    assert find_definition("eval/far/nonsense") is None


def test_every_definition_is_a_sentence() -> None:
    assert all(one.about[0].isupper() and one.about.endswith(".") for one in DEFINITIONS.values())


def test_the_page_of_metrics_is_up_to_date() -> None:
    """If not: python -m hindsight.cluster.report.definitions > docs/metrics.md"""
    assert (PROJECT / "docs/metrics.md").read_text() == definitions.page()


def test_the_dashboard_of_grafana_is_up_to_date() -> None:
    """If not: python -m hindsight.cluster.report.grafana > docs/grafana.json"""
    assert (PROJECT / "docs/grafana.json").read_text() == grafana.grafana_json()


def test_the_dashboard_has_every_metric_once_by_topic() -> None:
    rows = [panel for panel in grafana.grafana_dashboard()["panels"] if panel["type"] == "row"]
    expressions = [panel["targets"][0]["expr"] for row in rows for panel in row["panels"]]
    assert expressions == [grafana.query(name) for name in DEFINITIONS]
    assert (
        grafana.query("rollout/success") == 'max by (run, stage) (ray_hindsight_rollout_success{run=~"$run"})'
    )
    assert '"ray_hindsight_restarts_[a-z0-9]+_seconds"' in grafana.query("restarts/{role}_seconds")


def test_panels_do_not_overlap() -> None:
    panels = grafana.grafana_dashboard()["panels"]
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells)
