"""A group that is annotated while it is played comes out as one that is annotated when it is over."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from figure_steps import Recorder, rebuild
from settled import on_cpus
from test_figures import GROUPS, RECORDINGS

from hindsight.cluster.method import Method
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.learner.samples import COLUMNS, OpenGroup, SampleGroup, to_samples
from hindsight.rollout.types import Failure, Group, Trajectory, Tried


def configured(name: str) -> Config:
    method, overrides = RECORDINGS[name]
    candidates = ["signal.top_k=4"] * (load_config(None, [f"method={method}"]).signal.loss_weight > 0)
    return on_cpus(
        load_config(None, [f"method={method}", "feedback.max_tokens=160", *candidates, *overrides])
    )


def whole(config: Config, group: Group) -> SampleGroup:
    made, run = to_samples(group), Recorder(config, GROUPS)
    asyncio.run(Method(run).annotate(made, 0))  # type: ignore[arg-type]
    return made


def played(config: Config, group: Group, seed: int) -> tuple[SampleGroup, list[set[int]]]:
    """The group as its episodes end in some order; and after each end, who has been asked about."""
    outcomes: list[Trajectory | Failure] = [*group.trajectories, *group.failures]
    order = random.Random(seed)
    order.shuffle(outcomes)
    # Trajectories keep their order, as the ids of the recorded judge's answers do.
    kept = iter(group.trajectories)
    outcomes = [next(kept) if isinstance(one, Trajectory) else one for one in outcomes]
    ends = list(range(len(outcomes)))
    order.shuffle(ends)
    needs_solution = config.feedback.needs_solution
    open_group = OpenGroup(group.ordinal, group.task, len(outcomes), needs_solution)
    run, asked = Recorder(config, GROUPS), []

    async def go() -> SampleGroup:
        method = Method(run)  # type: ignore[arg-type]
        async with method.annotation(open_group, 0) as annotation:
            for place, index in enumerate(ends):
                if needs_solution and place == len(ends) // 2:
                    open_group.solve(Tried(group.reference))
                    annotation.go_on()
                open_group.end(index, Tried(outcomes[index]))
                annotation.go_on()
                for _ in range(50):
                    await asyncio.sleep(0)
                asked.append({index for _, part in annotation._asking for index in part})
            made = await annotation.end()
        method.compare(made)
        return made

    made = asyncio.run(go())
    made.group = replace(made.group, retried=group.retried)
    return made, asked


def figures(group: SampleGroup) -> dict[str, Any]:
    """All that a group has, but times."""
    columns = [{name: getattr(sample, name) for name in COLUMNS} | sample.masks for sample in group.samples]
    failures = sorted((one.kind, one.message) for one in group.failures)
    named = {name: value for name, value in group.figures.items() if "seconds" not in name}
    said = {
        "hints": [one.hints for one in group.trajectories],
        "notes": [one.notes for one in group.trajectories],
    }
    return {"columns": columns} | said | named | {"failures": failures}


@pytest.mark.parametrize("name", RECORDINGS)
def test_the_same_to_the_bit(name: str) -> None:
    config = configured(name)
    for record in GROUPS:
        group = rebuild(record)
        expected = figures(whole(config, group))
        np.testing.assert_equal(figures(played(config, group, seed=group.ordinal)[0]), expected)


@pytest.mark.parametrize(
    ("name", "group", "early"),
    [("serl", 4, True), ("serl_anchor", 4, False), ("sdpo", 9, False), ("hero", 9, True)],
)
def test_some_are_asked_about_before_the_last_is_over(name: str, group: int, early: bool) -> None:
    record = next(one for one in GROUPS if one["ordinal"] == group)
    asked = [played(configured(name), rebuild(record), seed)[1] for seed in range(4)]
    assert any(one[-2] for one in asked) == early
    assert all(one[-1] == set(range(len(record["trajectories"]))) for one in asked)
