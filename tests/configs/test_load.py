"""Loading: the order of layers, and errors that name the mistake."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from hindsight.configs.check import check_config, render
from hindsight.configs.load import RECIPES, ConfigError, load_config, methods, recipes
from hindsight.configs.registry import ENVIRONMENTS, nearest
from hindsight.configs.renamed import RENAMED
from hindsight.configs.schema import Config
from hindsight.configs.setting import settings

BASES = ["base_cpu", "base_gpu"]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def problems(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_nothing_gives_the_defaults() -> None:
    assert load_config() == Config()


def test_one_configuration_leaves_nothing_in_the_next() -> None:
    changed = load_config(None, ["steps=7", "feedback.sources=[immediate]"])
    changed.feedback.sources.append("sibling")
    assert load_config(None, ["feedback.sources=[immediate]"]).feedback.sources == ["immediate"]
    load_config(None, ["steps=7", "rollout.num_groups=3"])
    assert load_config() == Config()


def test_later_layers_win(tmp_path: Path) -> None:
    write(tmp_path, "first.yaml", "steps: 1\nseed: 1\nrollout: {num_groups: 1, engines: 3}\n")
    write(tmp_path, "second.yaml", "base: first.yaml\nseed: 2\nrollout: {num_groups: 2}\n")
    third = write(tmp_path, "third.yaml", "base: second.yaml\nrollout: {num_groups: 5}\n")
    config = load_config(
        third, ["rollout.num_groups=7", "env.kinds=[a, b]", "learner.lr=1e-5", "env.data=null"]
    )
    assert (config.steps, config.seed, config.rollout.engines, config.rollout.num_groups) == (1, 2, 3, 7)
    assert (config.env.kinds, config.learner.lr, config.env.data) == (["a", "b"], 1e-5, None)
    assert config.rollout.temperature == Config().rollout.temperature


def test_the_result_is_frozen() -> None:
    config = load_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rollout.num_groups = 3  # type: ignore[misc]


def test_a_base_that_leads_back_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    assert "forms a cycle" in problems(write(tmp_path, "b.yaml", "base: a.yaml\n"))


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
    assert problems(None, f"{wrong}=3") == f"command line: unknown setting {wrong!r}. Did you mean {right!r}?"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=many", "steps = 'many': expected an integer >= 0"),
        ("steps=1.5", "steps = 1.5: expected an integer >= 0"),
        ("steps=true", "steps = True: expected an integer >= 0"),
        ("learner.lr=fast", "learner.lr = 'fast': expected a number >= 0"),
        ("prompt.think=maybe", "prompt.think = 'maybe': expected true or false"),
        ("env.kinds=one", "env.kinds = 'one': expected a list of text"),
        ("out=null", "out = None: expected text"),
        ("env.data=[a]", "env.data = ['a']: expected text or null"),
        ("rollout=3", "rollout = 3: a section has no value; set rollout.engines, for example"),
        ("learner.lora=3", "learner.lora = 3: a section has no value; set learner.lora.rank, for example"),
        ("feedback.sources=null", "feedback.sources = None: expected a list of text"),
        ("signal.name=[reweight]", "signal.name = ['reweight']: expected text"),
        ("tracker.names=ray", "tracker.names = 'ray': expected a list of text"),
    ],
)
def test_a_wrong_type_names_key_value_and_what_is_expected(override: str, expected: str) -> None:
    assert problems(None, override) == f"command line: {expected}"


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    recipe = write(tmp_path, "r.yaml", "step: 1\nrollout: {num_groups: few}\nlearner:\n  zero: 3\n")
    lines = problems(recipe, "seed=x").splitlines()
    assert [line.rpartition(": ")[0] != "" for line in lines] == [True] * 4
    assert "mean 'steps'" in lines[0] and "rollout.num_groups = 'few'" in lines[1]
    assert "mean 'learner.zero_stage'" in lines[2] and lines[3].startswith("command line: seed = 'x'")
    assert all(line.startswith(f"{recipe}: ") for line in lines[:3])


@pytest.mark.parametrize("override", ["steps", "=3", "env.kinds=[a"])
def test_a_malformed_override_is_named(override: str) -> None:
    assert repr(override) in problems(None, override)


def test_unreadable_recipes_are_named(tmp_path: Path) -> None:
    assert "Unknown recipe" in problems(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="Did you mean 'webshop'"):
        load_config("webshp")
    assert "not a readable YAML file" in problems(write(tmp_path, "broken.yaml", "steps: [1\n"))
    assert "`key: value`" in problems(write(tmp_path, "list.yaml", "- steps\n"))
    assert "Unknown recipe" in problems(tmp_path)


def test_nearest_prefers_the_whole_name() -> None:
    assert nearest("teacher.timeout", ["learner.timeout", "teacher.timeouts"]) == "teacher.timeouts"


@pytest.mark.parametrize("recipe", recipes())
def test_a_rendered_recipe_loads_back_equal(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe)
    assert load_config(write(tmp_path, "resolved.yaml", render(config))) == config


def test_what_names_a_method_is_laid_over_it(tmp_path: Path) -> None:
    recipe = write(tmp_path, "recipe.yaml", "signal: {name: reweight, strength: 0.9, clip: 0.1}\nsteps: 3\n")
    assert load_config(recipe, ["method=grpo"]).signal == Config().signal
    assert load_config(recipe, ["method=serl", "signal.clip=0.3"]).signal.clip == 0.3
    inside = write(tmp_path, "inside.yaml", "base: recipe.yaml\nmethod: serl\nsignal: {strength: 0.7}\n")
    config = load_config(inside)
    assert (config.method, config.signal.strength, config.signal.clip) == ("serl", 0.7, 0.2)
    said = problems(recipe, "method=serll")
    assert said.startswith("command line: method = 'serll' is unknown. Did you mean 'serl'? Use ")
    assert said.endswith(", or FILE.yaml") and all(name in said for name in methods())


def test_a_method_may_be_a_file(tmp_path: Path) -> None:
    own = write(tmp_path, "own.yaml", "credit: {advantage: rloo}\nloss: {entropy: 0.5}\n")
    config = load_config("alfworld", [f"method={own}"])
    assert (config.method, config.credit.advantage, config.loss.entropy) == (str(own), "rloo", 0.5)
    assert config.signal == Config().signal and config.env == load_config("alfworld").env
    assert load_config(write(tmp_path, "recipe.yaml", f"method: {own}\n")).loss.entropy == 0.5
    said = problems(None, f"method={tmp_path}/absent.yaml")
    assert said == (
        f"command line: method = '{tmp_path}/absent.yaml': there is no file {tmp_path}/absent.yaml"
    )
    wrong = write(tmp_path, "wrong.yaml", "credit: {advantag: rloo}\n")
    assert problems(None, f"method={wrong}") == (
        f"{wrong}: unknown setting 'credit.advantag'. Did you mean 'credit.advantage'?"
    )


@cache
def by_itself(method: str) -> Config:
    return load_config(None, [f"method={method}"])


@pytest.mark.parametrize("recipe", recipes())
def test_every_method_takes_the_place_of_a_recipes_own(recipe: str) -> None:
    """Whatever a recipe sets of a signal that another method replaces is dropped with it."""
    for name in methods():
        config = load_config(recipe, [f"method={name}", "rollout.group_size=8"])
        assert check_config(config) == [], name
        alone = by_itself(name)
        mine, theirs = vars(config.signal), vars(alone.signal)
        changed = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
        assert type(config.signal) is type(alone.signal) and changed <= {"decay_steps"}, name
        lora, own = vars(config.learner.lora), vars(alone.learner.lora)
        assert lora | {"targets": own["targets"]} == own, name  # which layers there are is the model's matter


def test_a_replaced_method_leaves_nothing_of_its_own() -> None:
    """ALFWorld's recipe sets signal.decay_steps for its method's signal; GRPO has no such setting."""
    assert load_config("alfworld").signal.decay_steps == 100
    config = load_config("alfworld", ["method=grpo"])
    assert config.signal == Config().signal and config.feedback.sources == []
    assert not config.needs_teacher and not hasattr(config.signal, "decay_steps")
    assert (
        config.credit.success_reward == load_config("alfworld").credit.success_reward == 1.0
    )  # the recipe's own
    said = problems(None, "method=grpo", "signal.decay_steps=3")
    assert said.startswith(
        "command line: unknown setting 'signal.decay_steps'. It belongs to signal.name=reweight"
    )


@pytest.mark.parametrize("key", RENAMED)
def test_a_renamed_setting_names_its_new_one(key: str) -> None:
    assert problems(None, f"{key}=1") == f"command line: unknown setting {key!r}. {RENAMED[key]}"


def test_renamed_settings_lead_to_settings() -> None:
    entries = ["env.name=taubench", "credit.advantage=gae"]
    known = {
        item.key
        for signal in ("reweight", "distill")
        for item in settings(load_config(None, [*entries, f"signal.name={signal}"]))
    }
    for key, hint in RENAMED.items():
        now = re.match(r"It is now ([\w.]+)|It was removed", hint)
        assert now and key not in known
        assert now[1] is None or now[1].rstrip(".") in known, key


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_has_one_base_and_the_base_none(recipe: str) -> None:
    base = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["base"]
    assert base in BASES and "base" not in yaml.safe_load((RECIPES / f"{base}.yaml").read_text())


@pytest.mark.parametrize("base", BASES)
def test_a_base_names_no_environment_and_no_method(base: str) -> None:
    text = (RECIPES / f"{base}.yaml").read_text()
    values = yaml.safe_load(text)
    assert "method" not in values and not {"name", "data", "kinds"} & values["env"].keys()
    assert not values.keys() & {"credit", "feedback", "judge", "signal"}
    assert not any(name in text.lower().split() for name in ENVIRONMENTS.builtin)


def test_another_environment_drops_the_task_types_and_data_of_a_recipes_own(tmp_path: Path) -> None:
    assert load_config("nano").env.kinds == ["look_at_obj_in_light"]
    assert load_config("nano").evaluate.panels == ["training"]
    another = load_config("nano", ["env.name=webshop"])
    assert another.env.kinds == [] and another.evaluate.panels == ["evaluation"]
    assert load_config("nano", ["env.name=webshop", "env.kinds=[garden]"]).env.kinds == ["garden"]
    recipe = write(tmp_path, "mine.yaml", "base: nano\nenv: {name: bfcl, kinds: [base]}\n")
    assert load_config(recipe).env.kinds == ["base"]


def test_a_setting_of_another_entry_names_it() -> None:
    assert problems(None, "env.goals=human").endswith("It belongs to env.name=webshop")
    assert problems(None, "credit.history_offset=1").endswith("It belongs to credit.advantage=hgpo")
    meant = "Did you mean 'env.user.source'? It belongs to env.name=taubench"
    assert problems(None, "env.user.sorce=3").endswith(meant)


def test_a_folder_with_the_name_of_a_recipe_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("nano") == load_config(recipes()["nano"])
