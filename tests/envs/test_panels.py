"""Panels: canonical tasks whatever the settings, equal digests for equal tasks, never a training task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hindsight.configs.schema import Env
from hindsight.envs.base import EVALUATION, TRAINING, SettingError
from hindsight.envs.bfcl.data import KINDS as SETS
from hindsight.envs.bfcl.data import entries
from hindsight.envs.bfcl.env import BfclFamily
from hindsight.envs.panels import find_panels
from hindsight.envs.tasks import Manifest, Panel, TaskSpec
from hindsight.envs.taubench.domains import DOMAINS
from hindsight.envs.taubench.env import TauFamily
from hindsight.envs.taubench.settings import TauSettings
from hindsight.envs.taubench.upstream import registry
from hindsight.envs.webshop.env import WebShopFamily


class Plain(BfclFamily):
    """An environment without panels of its own."""

    KINDS = ()

    def __init__(self, *data: object) -> None:
        self.tasks = tuple(TaskSpec(str(one), "plain", "k", "s", {"n": one}) for one in data)

    def manifest(self) -> Manifest:
        return Manifest(self.tasks[:2], self.tasks[2:])

    def panels(self):
        return super(BfclFamily, self).panels()


def panel(family, name):
    [found] = find_panels(family, family.manifest(), [name])
    return found


def test_an_own_environment_has_the_panel_of_its_held_out_tasks():
    found = panel(Plain(1, 2, 3, 4), EVALUATION)
    assert [task.id for task in found.tasks] == ["3", "4"]
    assert str(found) == f"panel evaluation: 2 tasks, digest {found.digest}"
    with pytest.raises(SettingError, match=r"no panel 'far' with these settings. Use evaluation, training$"):
        panel(Plain(1, 2, 3), "far")
    with pytest.raises(SettingError, match="evaluation has no tasks"):
        panel(Plain(1, 2), EVALUATION)


def test_a_digest_is_of_what_the_tasks_hold_and_of_their_order():
    tasks = Plain(1, 2, 3).tasks
    digests = {
        Panel("a", tasks).digest,
        Panel("b", tasks).digest,
        Panel("a", tasks[::-1]).digest,
        Panel("a", tasks[:2]).digest,
        Panel("a", (replace(tasks[0], data={"n": 9}), *tasks[1:])).digest,
    }
    assert len(digests) == 4


def test_a_training_task_is_never_evaluated():
    family = Plain(1, 2, 3)
    leaking = Manifest(family.tasks[:2], family.tasks[1:])
    with pytest.raises(SettingError, match=r"1 of 2 tasks of evaluation are training tasks, 2 for one"):
        find_panels(family, leaking, [EVALUATION])


def test_taubench_has_upstreams_test_splits_by_domain(tmp_path):
    retail = TauFamily(TauSettings(name="taubench", kinds=["retail"], eval_tasks=5), tmp_path)
    other = TauFamily(TauSettings(name="taubench", seed=3), tmp_path)
    for kind, size in zip(DOMAINS, (40, 20, 40), strict=True):
        found = panel(retail, f"taubench/{kind}")
        assert [task.data["task"] for task in found.tasks] == registry.get_task_splits_loader(kind)()["test"]
        assert len(found.tasks) == size and found.digest == panel(other, f"taubench/{kind}").digest
    assert len(panel(retail, EVALUATION).tasks) == 5
    env = retail.make()  # trained on retail, it plays airline
    assert env.reset(panel(retail, "taubench/airline").tasks[0]).text


@pytest.mark.parametrize("kinds", [(), ("base", "long_context")])
def test_bfcl_subsets_share_no_scenario_with_training(kinds, tmp_path):
    family = BfclFamily(Env(name="bfcl", kinds=list(kinds), train_tasks=200, eval_tasks=160), tmp_path)
    trained = {entries()[task.id].scenario for task in family.manifest().train}
    for kind in SETS:
        found = panel(family, f"bfcl/{kind}").tasks
        scenarios = [entries()[task.id].scenario for task in found]
        assert len(found) == 160 // (len(kinds) or len(SETS)) and scenarios == sorted(scenarios)
        assert {task.kind for task in found} == {kind} and not trained & set(scenarios)
    drawn = {task.id for task in panel(family, EVALUATION).tasks}
    assert drawn <= {task.id for kind in SETS for task in panel(family, f"bfcl/{kind}").tasks}


def test_webshop_tests_the_first_goals_in_their_order(tmp_path):
    family = WebShopFamily(WebShopFamily.Settings(name="webshop", kinds=["grocery"], eval_tasks=7), tmp_path)
    found = panel(family, "test").tasks
    assert [task.data["goal"] for task in found] == list(range(500)) and len({t.kind for t in found}) > 1
    assert {task for task in map(str, panel(family, EVALUATION).tasks)} <= set(map(str, found))


def test_the_training_tasks_are_a_panel_under_their_own_name():
    family = Plain(1, 2, 3)
    assert panel(family, TRAINING) == Panel("training", family.manifest().train)
