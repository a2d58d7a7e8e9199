"""Checking: ranges, contradictions and paths, all problems at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs.check import check, differences, render, settings
from hindsight.configs.load import load
from hindsight.configs.schema import Config

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
BOUNDED = [
    (key, item)
    for key, item, _ in settings(Config())
    if item.metadata["low"] is not None or item.metadata["high"]
]
CHOSEN = [(key, item) for key, item, _ in settings(Config()) if item.metadata["choices"]]


def problems(*overrides: str) -> list[str]:
    return check(load(None, overrides))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipes_are_free_of_problems(recipe: Path) -> None:
    assert check(load(recipe)) == []


def test_every_setting_has_a_meaning_and_a_default_within_its_range() -> None:
    assert all(item.metadata["help"] for _, item, _ in settings(Config()))
    assert check(Config()) == []


@given(st.sampled_from(BOUNDED), st.floats(0.001, 1e6))
def test_values_outside_a_range_are_named(bounded: tuple[str, dataclasses.Field], beyond: float) -> None:
    key, item = bounded
    low, high = item.metadata["low"], item.metadata["high"]
    value = high + beyond if high is not None else low - beyond
    if item.type == "int":
        value = int(value + 1) if high is not None else int(value - 1)
    named = f"{key} = {value!r} is not allowed: "
    found = [problem for problem in problems(f"{key}={value!r}") if problem.startswith(named)]
    assert len(found) == 1
    assert f"{'at most' if high is not None else 'at least'} {high if high is not None else low}" in found[0]


@pytest.mark.parametrize(("key", "item"), CHOSEN, ids=[key for key, _ in CHOSEN])
def test_a_wrong_choice_lists_the_right_ones(key: str, item: dataclasses.Field) -> None:
    assert problems(f"{key}=nonsense")[0] == (
        f"{key} = 'nonsense' is not allowed: one of {', '.join(item.metadata['choices'])}"
        + (", or module:Class" if key == "env.name" else "")
    )


def test_an_environment_of_ones_own_is_named_by_module_and_class() -> None:
    assert problems("env.name=my.games:Family") == []
    assert problems("model.dtype=''")
    for wrong in ("games", "':Family'", "'games:'", "my games:Family", "a:b:c", "''"):
        assert problems(f"env.name={wrong}")[0].startswith("env.name = ")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_are_refused(value: str) -> None:
    assert [problem.split(" =")[0] for problem in problems(f"learner.lr=.{value}".replace(".-", "-."))] == [
        "learner.lr"
    ]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollout.max_tokens=2048"], "rollout.max_tokens = 2048"),
        (["feedback.max_tokens=4096"], "feedback.max_tokens = 4096"),
        (["rollout.group_size=1"], "rollout.group_size = 1"),
        (["feedback.source=none"], "reweight.strength = 0.5"),
        (["feedback.sibling=only"], "feedback.source = immediate"),
        (["feedback.source=none", "feedback.sibling=or"], "feedback.sibling = or"),
        (["feedback.source=reference", "feedback.granularity=anchor"], "feedback.granularity = anchor"),
        (["feedback.source=future", "feedback.anchor_feedback=true"], "feedback.anchor_feedback = True"),
        (["feedback.granularity=anchor", "feedback.anchor_feedback=true"], "feedback.anchor_feedback = True"),
        (
            ["feedback.source=judge", "judge.source=endpoint", "judge.api_key_env=PATH"],
            "judge.source = endpoint",
        ),
        (
            [
                "feedback.source=judge",
                "judge.source=endpoint",
                "judge.url=http://here/v1",
                "judge.model=m",
                "judge.api_key_env=NO_SUCH_KEY",
            ],
            "judge.api_key_env = 'NO_SUCH_KEY'",
        ),
        (
            ["credit.advantage=gae", "loss.policy=0", "distill.weight=1", "reweight.strength=0"],
            "credit.advantage",
        ),
        (["evaluate.agent=react", "prompt.think=false"], "evaluate.agent = react"),
        (["evaluate.agent=reflexion", "prompt.preset=window"], "evaluate.agent = reflexion"),
        (["loss.kl=0.01", "loss.policy=0", "distill.weight=1", "reweight.strength=0"], "loss.kl = 0.01"),
        (["loss.dual_clip=0.5"], "loss.dual_clip = 0.5"),
        (["loss.tis_cap=0.5"], "loss.tis_cap = 0.5"),
        (["learner.micro_batch_tokens=1024"], "learner.micro_batch_tokens = 1024"),
        (["teacher.batch_tokens=1024"], "teacher.batch_tokens = 1024"),
        (["learner.zero_stage=0", "model.dtype=float32"], "learner.zero_stage = 0"),
        (
            ["weight_sync.transport=nccl", "cluster.share_gpu=true", "rollout.gpu_memory_utilization=0.4"],
            "weight_sync.transport = nccl",
        ),
        (["cluster.share_gpu=true"], "rollout.gpu_memory_utilization = 0.85"),
        (["env.data=/nowhere"], "env.data = '/nowhere'"),
        (["model.path=./nowhere"], "model.path = './nowhere'"),
    ],
)
def test_one_contradiction_gives_one_problem(overrides: list[str], named: str) -> None:
    found = problems(*overrides)
    assert len(found) == 1 and found[0].startswith(named)


@pytest.mark.parametrize(
    "overrides",
    [
        ["feedback.source=none", "reweight.strength=0"],
        ["feedback.source=none", "feedback.sibling=only"],
        ["feedback.source=next_observation", "feedback.granularity=anchor", "feedback.anchor_feedback=true"],
        ["feedback.source=reflect"],
        ["rollout.group_size=1", "steps=0"],
        ["rollout.group_size=1", "credit.advantage=gae"],
        ["loss.dual_clip=0", "loss.tis_cap=0"],
        ["learner.zero_stage=1", "model.dtype=float32"],
        ["learner.zero_stage=0", "model.dtype=bfloat16"],
        [
            "weight_sync.transport=nccl",
            "cluster.share_gpu=true",
            "rollout.gpu_memory_utilization=0.4",
            "learner.lora.rank=8",
        ],
    ],
)
def test_the_advice_removes_the_problem(overrides: list[str]) -> None:
    assert problems(*overrides) == []


def test_an_output_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in problems(f"out={tmp_path}/file/run")[0]
    assert problems(f"out={tmp_path}/new/run") == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hindsight.configs.check.FREE_GIB", 1e9)
    assert "GiB free" in problems(f"out={tmp_path}")[0]


def test_all_problems_come_at_once() -> None:
    assert len(problems("steps=-1", "rollout.temperature=0", "prompt.preset=x", "rollout.group_size=1")) == 3


def test_settings_that_a_run_did_not_begin_with_are_said() -> None:
    overrides = ["steps=9", "env.user.model=m", "env.kinds=[a]"]
    before, now = render(Config()), load(None, overrides)
    assert differences(before, Config()) == []
    assert differences(before, now) == [
        f"steps: {Config().steps} → 9",
        "env.kinds: [] → ['a']",
        "env.user.model:  → m",
    ]
    assert differences(before.replace("steps:", "a_key_of_old:"), now)[0].startswith("env.")


def test_render_says_what_each_key_means() -> None:
    lines = render(Config()).splitlines()
    assert "steps: 20  # training steps of reinforcement (int, at least 0)" in lines
    assert "  clip: 0.2  # ε: token weights stay within [1−ε, 1+ε] (float, at least 0.0, at most 1.0)" in [
        line.replace(" and ", ", ") for line in lines
    ]
