"""Checking: ranges, contradictions and paths, all problems at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hindsight.configs.check import changed_settings, check_config, render
from hindsight.configs.load import ConfigError, load_config, recipes
from hindsight.configs.registry import REGISTRIES
from hindsight.configs.schema import Config
from hindsight.configs.setting import settings

# By its key, a setting and the override that names the entry it belongs to: the first of those that have it.
SETTINGS = {
    item.key: (registry.override(name), item)
    for section, registry in reversed(REGISTRIES.items())
    for name in reversed(registry.installed)
    for item in settings(replace(Config(), **{section: registry.settings(name)()}))
}
BOUNDED = [key for key, (_, item) in SETTINGS.items() if item.low is not None or item.high is not None]
CHOSEN = [key for key, (_, item) in SETTINGS.items() if item.choices]


def problems(*overrides: str) -> list[str]:
    return check_config(load_config(None, overrides))


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_are_free_of_problems(recipe: str) -> None:
    assert check_config(load_config(recipe)) == []


def test_every_setting_has_a_meaning_and_a_default_within_its_range() -> None:
    assert all(item.help and item.allowed for _, item in SETTINGS.values())
    assert check_config(Config()) == []
    assert {"env.user.source", "env.goals", "credit.history", "feedback.targets"} < SETTINGS.keys()


def test_there_are_few_settings() -> None:
    assert len(list(settings(Config()))) <= 120


def test_the_default_is_plain_grpo_without_a_teacher() -> None:
    assert not Config().needs_teacher and not Config().needs_reference and not Config().needs_critic
    assert Config().credit.advantage == "grpo" and load_config() == Config()


@given(st.sampled_from(BOUNDED), st.floats(0.001, 1e6))
def test_values_outside_a_range_are_named(key: str, beyond: float) -> None:
    entry, item = SETTINGS[key]
    low, high = item.low, item.high
    value = high + beyond if high is not None else low - beyond
    whole = item.type in (int, int | None)
    if whole:
        value = int(value + 1) if high is not None else int(value - 1)
    named = f"{key} = {value!r}: expected "
    [found] = [line for line in problems(entry, f"{key}={value!r}") if line.startswith(named)]
    assert f"<= {high:g}" in found if high is not None else found.endswith(f">= {low:g}")
    assert found.split(": expected ")[1].startswith("an integer" if whole else "a number")


@pytest.mark.parametrize("key", CHOSEN)
def test_a_wrong_choice_lists_the_right_ones(key: str) -> None:
    entry, item = SETTINGS[key]
    with pytest.raises(ConfigError) as caught:
        load_config(None, [entry, f"{key}=nonsense"])
    assert str(caught.value) == f"command line: {key} = 'nonsense': expected one of {', '.join(item.choices)}"
    assert item.value in item.choices and len(item.choices) > 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_that_are_none_are_refused(value: str) -> None:
    assert [problem.split(" =")[0] for problem in problems(f"learner.lr=.{value}".replace(".-", "-."))] == [
        "learner.lr"
    ]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["rollout.max_tokens=2048"], "rollout.max_tokens = 2048"),
        (["feedback.sources=[immediate]", "feedback.max_tokens=4096"], "feedback.max_tokens = 4096"),
        (["rollout.group_size=1"], "rollout.group_size = 1"),
        (["signal.name=reweight"], "signal.name = reweight needs hints"),
        (["signal.name=distill"], "signal.name = distill needs hints"),
        (["method=hero", "signal.tokens=action"], "signal.tokens = action"),
        (["loss.policy=0"], "loss.policy = 0"),
        (
            ["feedback.sources=[future, sibling, future]"],
            "feedback.sources = ['future', 'sibling', 'future']",
        ),
        (["feedback.granularity=anchor"], "feedback.granularity = anchor"),
        (["feedback.sources=[reference]", "feedback.granularity=anchor"], "feedback.granularity = anchor"),
        (
            ["feedback.sources=[judge, sibling]", "feedback.granularity=anchor"],
            "feedback.granularity = anchor",
        ),
        (
            ["feedback.sources=[judge]", "judge.source=endpoint", "judge.api_key_env=PATH"],
            "judge.source = endpoint",
        ),
        (
            [
                "feedback.sources=[judge]",
                "judge.source=endpoint",
                "judge.url=http://here/v1",
                "judge.model=m",
                "judge.api_key_env=NO_SUCH_KEY",
            ],
            "judge.api_key_env = 'NO_SUCH_KEY'",
        ),
        (["method=hero", "credit.advantage=gae"], "credit.advantage"),
        (["evaluate.agent=react", "prompt.think=false"], "evaluate.agent = react"),
        (["evaluate.agent=reflexion", "prompt.preset=window"], "evaluate.agent = reflexion"),
        (["method=hero", "loss.kl=0.01"], "loss.kl = 0.01"),
        (["loss.dual_clip=0.5"], "loss.dual_clip = 0.5"),
        (["loss.tis_cap=0.5"], "loss.tis_cap = 0.5"),
        (["learner.micro_batch_tokens=1024"], "learner.micro_batch_tokens = 1024"),
        (["method=serl", "teacher.batch_tokens=1024"], "teacher.batch_tokens = 1024"),
        (["loss.kl=0.01", "teacher.batch_tokens=1024"], "teacher.batch_tokens = 1024"),
        (["learner.zero_stage=0", "model.dtype=float32"], "learner.zero_stage = 0"),
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
        ["signal.name=reweight", "signal.strength=0"],
        ["signal.name=reweight", "feedback.sources=[sibling]"],
        ["signal.name=distill", "feedback.sources=[immediate]", "loss.policy=0"],
        ["feedback.sources=[sibling, future, immediate]", "feedback.granularity=anchor"],
        ["feedback.sources=[reflect]"],
        ["rollout.group_size=1", "steps=0"],
        ["rollout.group_size=1", "credit.advantage=gae"],
        [
            "teacher.batch_tokens=1024",
            "feedback.max_tokens=4096",
        ],  # without a teacher nothing is shown or scored
        ["loss.dual_clip=0", "loss.tis_cap=0"],
        ["learner.zero_stage=1", "model.dtype=float32"],
        ["learner.zero_stage=0", "model.dtype=bfloat16"],
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
    found = problems("steps=1", "evaluate.trials=0", "rollout.temperature=0", "rollout.group_size=1")
    assert [line.split(" = ")[0] for line in found] == [
        "rollout.temperature",
        "evaluate.trials",
        "rollout.group_size",
    ]


def test_settings_that_a_run_did_not_begin_with_are_said() -> None:
    tau = load_config(None, ["env.name=taubench"])
    changes = ["steps=9", "env.user.model=m", "env.kinds=[a]"]
    before, now = render(tau), load_config(None, ["env.name=taubench", *changes])
    assert changed_settings(before, tau) == []
    assert changed_settings(before, now) == [
        f"steps: {Config().steps} → 9",
        "env.kinds: [] → ['a']",
        "env.user.model:  → m",
    ]
    assert changed_settings(before.replace("steps:", "a_key_of_old:"), now)[0].startswith("env.")


def test_render_says_what_each_key_means() -> None:
    lines = render(load_config(None, ["method=serl"])).splitlines()
    assert "steps: 20  # training steps (an integer >= 0)" in lines
    assert "  clip: 0.2  # ε: token weights stay within [1−ε, 1+ε] (a number >= 0 and <= 1)" in lines
    assert sum("(one of history, window)" in line for line in lines) == 1
