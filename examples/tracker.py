"""A tracker: success rates as CSV. One for a hosted service looks the same; keys come from the environment.

hindsight train nano "tracker.names=[tracker.py]" tracker.csv_name=success.csv
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass

from hindsight.cluster.trackers import Tracker
from hindsight.configs.schema import Tracking
from hindsight.configs.setting import setting


class Example(Tracker):
    """Appends step and success rate of every step and evaluation to a CSV file in the run's folder."""

    @dataclass(frozen=True)
    class Settings(Tracking):
        """The section `tracker`, extended."""

        csv_name: str = setting("success.csv", "name of the CSV file")

    settings: Example.Settings

    def write(self, step: int, kind: str, values: Mapping[str, float], stage: str | None = None) -> None:
        for name in ("rollout/success", "eval/success"):
            if name in values:
                with (self.folder / self.settings.csv_name).open("a", newline="") as file:
                    csv.writer(file).writerow([step, kind, values[name]])
