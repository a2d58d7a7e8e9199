"""The panels that `evaluate.panels` names. Only the one called `training` holds training tasks."""

from __future__ import annotations

from collections.abc import Sequence

from hindsight.envs.base import EVALUATION, TRAINING, EnvFamily, SettingError
from hindsight.envs.tasks import Manifest, Panel


def find_panels(family: EnvFamily, manifest: Manifest, names: Sequence[str]) -> tuple[Panel, ...]:
    """Return the panels of these names, in their order.

    Raises:
        SettingError: the environment has no such panel, or it is empty or holds a training task.
        DataMissing: the data lack its tasks.
    """
    known, training = family.panels(), {task.id for task in manifest.train}
    listed = {EVALUATION: manifest.evaluation, TRAINING: manifest.train}
    found = []
    for name in names:
        if name not in known:
            raise SettingError(
                f"evaluate.panels = {list(names)}: {family.name} has no panel {name!r} with these settings. "
                f"Use {', '.join(known)}"
            )
        panel = Panel(name, listed[name] if name in listed else known[name]())
        if not panel.tasks:
            raise SettingError(f"evaluate.panels: {name} has no tasks with these settings; choose another")
        if name != TRAINING and (shared := [task.id for task in panel.tasks if task.id in training]):
            raise SettingError(
                f"evaluate.panels: {len(shared)} of {len(panel.tasks)} tasks of {name} are training tasks, "
                f"{shared[0]} for one. Choose another panel"
            )
        found.append(panel)
    return tuple(found)
