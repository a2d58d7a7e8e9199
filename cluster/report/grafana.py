"""A Grafana dashboard of Ray's metrics with a panel for each metric that is defined.

`python -m hindsight.cluster.report.grafana` prints docs/grafana.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from hindsight.cluster.report.definitions import DEFINITIONS, TOPICS, gauge

FIRST = (  # what docs/metrics.md says to look at first
    "eval/success",
    "rollout/success",
    "rollout/malformed",
    "rollout/mixed_groups",
    "learner/teacher_gap",
    "learner/weight_clip_fraction",
    "learner/mismatch_kl",
    "learner/ess",
    "learner/entropy",
    "learner/grad_norm",
    "time/step",
    "failures/total",
)
BOUNDS = {"eval/success": ("eval/low", "eval/high")}  # drawn with it
UNITS = {"share": "percentunit", "s": "s"}  # Grafana's names; all other figures are plain numbers
WIDTH, HEIGHT, COLUMNS = 6, 7, 24  # of a panel and of the page, in Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${source}"}


def query(name: str) -> str:
    """The PromQL expression of a metric. A run that was resumed is one series, though it had two drivers."""
    found = "ray_" + gauge(re.sub(r"{\w+}", "PART", name))
    if "PART" not in found:
        return f'max by (run, stage) ({found}{{run=~"$run"}})'
    pattern = found.replace("PART", "[a-z0-9]+")
    return f'max by (__name__, run, stage) ({{__name__=~"{pattern}", run=~"$run"}})'


def panel(name: str, x: int, y: int) -> dict[str, Any]:
    """One metric over time, a line for each run and stage."""
    one = DEFINITIONS[name]
    title, legend = f"{name} ({one.unit})" if one.unit else name, "{{run}} {{stage}}"
    legend = "{{__name__}} " + legend if "{" in name else legend
    targets = [
        {"refId": chr(ord("A") + index), "expr": query(each), "legendFormat": legend}
        for index, each in enumerate((name, *BOUNDS.get(name, ())))
    ]
    defaults = {"unit": UNITS.get(one.unit, "short"), "custom": {"showPoints": "auto", "spanNulls": True}}
    return {
        "type": "timeseries",
        "title": title,
        "description": one.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


def placed(names: Iterable[str], top: int) -> list[dict[str, Any]]:
    """Panels side by side, from the row `top` on."""
    across = COLUMNS // WIDTH
    return [
        panel(name, index % across * WIDTH, top + index // across * HEIGHT)
        for index, name in enumerate(names)
    ]


def rows() -> Iterator[dict[str, Any]]:
    """What to look at first, then a closed row for each topic."""
    panels = placed(FIRST, 0)
    yield from panels
    below = panels[-1]["gridPos"]["y"] + HEIGHT
    for topic, (title, own) in TOPICS.items():
        inside = placed([f"{topic}/{name}" for name in own], below + 1)
        place = {"x": 0, "y": below, "w": COLUMNS, "h": 1}
        yield {"type": "row", "title": title, "collapsed": True, "gridPos": place, "panels": inside}
        below += 1


def grafana_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    run: dict[str, Any] = {"name": "run", "type": "query", "datasource": SOURCE, "refresh": 2}
    run |= {"query": "label_values(ray_hindsight_running, run)", "multi": True, "includeAll": True}
    return {
        "uid": "hindsight",
        "title": "Hindsight",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source, run]},
        "panels": list(rows()),
    }


def grafana_json() -> str:
    """docs/grafana.json."""
    return json.dumps(grafana_dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(grafana_json(), end="")
