"""Loading: the order of layers, and errors that name the mistake."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from hindsight.configs.check import check, render
from hindsight.configs.load import ConfigError, load, methods, nearest
from hindsight.configs.schema import Config

RECIPES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def problems(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_nothing_gives_the_defaults() -> None:
    assert load() == Config()


def test_later_layers_win(tmp_path: Path) -> None:
    write(tmp_path, "first.yaml", "steps: 1\nseed: 1\nrollout: {num_groups: 1, workers: 3}\n")
    write(tmp_path, "second.yaml", "base: first.yaml\nseed: 2\nrollout: {num_groups: 2}\n")
    third = write(tmp_path, "third.yaml", "base: second.yaml\nrollout: {num_groups: 5}\n")
    config = load(third, ["rollout.num_groups=7", "env.kinds=[a, b]", "learner.lr=1e-5", "env.data=null"])
    assert (config.steps, config.seed, config.rollout.workers, config.rollout.num_groups) == (1, 2, 3, 7)
    assert (config.env.kinds, config.learner.lr, config.env.data) == (["a", "b"], 1e-5, None)
    assert config.rollout.temperature == Config().rollout.temperature


def test_the_result_is_frozen() -> None:
    config = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rollout.num_groups = 3  # type: ignore[misc]


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    assert "leads back" in problems(write(tmp_path, "b.yaml", "base: a.yaml\n"))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("rollout.temperture", "rollout.temperature"),
        ("eval_temperature", "evaluate.temperature"),
        ("rollout.group_sizes", "rollout.group_size"),
        ("learner.sync_every", "teacher.sync_every"),
        ("stps", "steps"),
        ("warmstart.demos", "sft.demos"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong: str, right: str) -> None:
    assert problems(None, f"{wrong}=3") == f"command line: unknown key {wrong}; the nearest is {right}"


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("steps=many", "steps = 'many' is not allowed: int, at least 0"),
        ("steps=1.5", "steps = 1.5 is not allowed: int, at least 0"),
        ("steps=true", "steps = True is not allowed: int, at least 0"),
        ("learner.lr=fast", "learner.lr = 'fast' is not allowed: float, at least 0.0"),
        ("prompt.think=maybe", "prompt.think = 'maybe' is not allowed: true or false"),
        ("env.kinds=one", "env.kinds = 'one' is not allowed: a list of text"),
        ("out=null", "out = None is not allowed: text"),
        ("rollout=3", "rollout = 3 is not allowed: it is a section, set its keys"),
    ],
)
def test_a_wrong_type_names_key_value_and_what_is_allowed(override: str, allowed: str) -> None:
    assert problems(None, override) == f"command line: {allowed}"


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    recipe = write(tmp_path, "r.yaml", "step: 1\nrollout: {num_groups: few}\nlearner:\n  zero: 3\n")
    lines = problems(recipe, "seed=x").splitlines()
    assert [line.rpartition(": ")[0] != "" for line in lines] == [True] * 4
    assert "nearest is steps" in lines[0] and "rollout.num_groups = 'few'" in lines[1]
    assert "nearest is learner.zero_stage" in lines[2] and lines[3].startswith("command line: seed = 'x'")


@pytest.mark.parametrize("override", ["steps", "=3", "env.kinds=[a"])
def test_a_malformed_override_is_named(override: str) -> None:
    assert repr(override) in problems(None, override)


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    assert "Unknown recipe" in problems(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="Did you mean 'webshop'"):
        load("webshp")
    assert "not a readable YAML file" in problems(write(tmp_path, "broken.yaml", "steps: [1\n"))
    assert "`key: value`" in problems(write(tmp_path, "list.yaml", "- steps\n"))
    assert "not a readable YAML file" in problems(tmp_path)


def test_nearest_prefers_the_whole_name() -> None:
    assert nearest("teacher.timeout", ["learner.timeout", "teacher.timeouts"]) == "teacher.timeouts"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_rendered_recipe_loads_back_equal(recipe: Path, tmp_path: Path) -> None:
    config = load(recipe)
    assert load(write(tmp_path, "resolved.yaml", render(config))) == config


def test_what_names_a_method_is_laid_over_it(tmp_path: Path) -> None:
    recipe = write(tmp_path, "recipe.yaml", "reweight: {strength: 0.9, clip: 0.1}\nsteps: 3\n")
    assert load(recipe, ["method=grpo"]).reweight.strength == 0.0
    assert load(recipe, ["method=serl", "reweight.clip=0.3"]).reweight.clip == 0.3
    inside = write(tmp_path, "inside.yaml", "base: recipe.yaml\nmethod: serl\nreweight: {strength: 0.7}\n")
    config = load(inside)
    assert (config.method, config.reweight.strength, config.reweight.clip) == ("serl", 0.7, 0.2)
    assert "method = 'serll' is not known; the nearest is serl" in problems(recipe, "method=serll")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_method_takes_the_place_of_a_recipes_own(recipe: Path) -> None:
    for name in methods():
        config = load(recipe, [f"method={name}", "rollout.group_size=8"])
        assert check(config) == [], name
        alone = load(None, [f"method={name}"])
        lora = replace(config.learner.lora, targets=[])  # which layers there are is the model's matter
        assert (config.reweight.strength, config.distill.weight, lora) == (
            alone.reweight.strength,
            alone.distill.weight,
            alone.learner.lora,
        ), name
