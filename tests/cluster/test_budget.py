"""What a run costs, worked out by hand, and the tables of docs/cost.md, which come from it."""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hindsight.cluster.budget import Budget, budget
from hindsight.cluster.budget_text import budget_tables, describe_origins, rounded, seeds_command
from hindsight.cluster.cli import app
from hindsight.cluster.memory import Shape
from hindsight.cluster.plan import Node, Plan
from hindsight.cluster.planner import plan
from hindsight.cluster.planning import model_shape
from hindsight.cluster.rates import EPISODES, Episode, Figures, Gpu, RatesError, figures_for
from hindsight.configs.check import check_config
from hindsight.configs.load import load_config, methods, recipes
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.configs.schema import Config
from hindsight.rollout.outline import outline

PAGE = Path(__file__).parents[2] / "docs/cost.md"
GPU_RECIPES = [name for name in recipes() if name.endswith("_gpu")]
EIGHT = Node(cpus=64, ram_gib=1024, gpus=8, gpu_gib=80)


@cache
def model(name: str) -> Any:
    return outline(name)


def shape_of(config: Config) -> Shape:
    return model_shape(model(config.model.path), config.learner.lora)


def planned(recipe: str, *overrides: str, gpus: int = 8, nodes: int = 1) -> Plan:
    config = load_config(recipe, overrides)
    return plan(config, [replace(EIGHT, gpus=gpus)] * nodes, shape_of(config))


def costs(made: Plan, **episode: float) -> Budget:
    """With round figures for the size of the model."""
    shape = shape_of(made.config)
    gpu = Gpu(
        billions=shape.parameters / 1e9,
        decode=1000,
        token=0.01,
        prefill=10_000,
        learn=1000,
        score=10_000,
        sync=2,
    )
    sizes = {"turns": 10, "first": 300, "observation": 100, "action": 20, "thought": 80, "step": 0.5}
    return budget(made, shape, Figures(gpu=gpu, episode=Episode(**sizes | episode)))


def assumed(made: Plan) -> Budget:
    return budget(made, shape_of(made.config), figures_for(made.config.env.name))


def test_a_run_of_serl_by_hand() -> None:
    """2 engines and 6 ranks; 1,280 turns per step with prompts of 300 + 2 × 100 and responses of 80 + 20."""
    made = planned("alfworld_7b_gpu")
    assert (len(made.of("engine")), len(made.of("learner")), len(made.of("teacher"))) == (2, 6, 6)
    assert made.config.learner.gradient_checkpointing
    found = costs(made)
    taught, plain = found.steps
    assert (taught.count, taught.taught, plain.count, plain.taught) == (50, True, 100, False)
    rollout = 1280 * (500 / 10_000 + 100 / 1000) / 2
    learner = 1280 * 600 / 6 * (8 / 6 / 1000 + 11 / 12 / 10_000)  # recomputing; old log-probs of 11 of 12
    teacher = 1280 * (500 + 200 + 100) / 6 / 10_000
    phases = {"rollout": rollout, "judge": 0.0, "teacher": teacher, "learner": learner, "weight sync": 2.0}
    assert taught.phases == pytest.approx(phases)
    assert plain.phases == pytest.approx(phases | {"teacher": 0.0})
    assert taught.seconds == pytest.approx(learner + teacher + 2) and taught.bound == "the learner"
    assert taught.engines == pytest.approx(rollout / taught.seconds)
    assert taught.ranks == pytest.approx((learner + teacher) / taught.seconds)
    # Steps 25, 50, …, 125 and 150, on two panels of 140 episodes; 120 before the first.
    evaluation = (12 * 140 + 120) * 10 * 0.15 / 2
    assert (found.evaluations, found.evaluation) == (13, pytest.approx(evaluation))
    whole = 50 * (learner + teacher + 2) + 100 * (learner + 2) + evaluation
    assert found.gpu_hours == pytest.approx(8 * whole / 3600) and found.warm_start == 0


def test_synchronous_phases_follow_each_other() -> None:
    taught, _ = costs(planned("alfworld_7b_gpu", "rollout.max_staleness=0")).steps
    assert taught.seconds == pytest.approx(sum(taught.phases.values()))
    assert taught.bound == "each phase in turn"
    [shared] = costs(planned("alfworld_7b_gpu", "method=grpo", "learner.lora.rank=32", gpus=1)).steps
    assert shared.seconds == pytest.approx(sum(shared.phases.values()))


def test_what_rollouts_wait_for() -> None:
    """A step of the environment that takes long: its slots, or the longest episode, of 50 turns."""
    few, _ = costs(planned("alfworld_7b_gpu", "env.shards=1", "env.slots=8"), step=9).steps
    turn = 500 / 10_000 + 100 * 0.01 + 9
    assert few.phases["rollout"] == pytest.approx(128 * 10 * turn / 8)
    assert few.bound == "the slots of the environments"
    many, _ = costs(planned("alfworld_7b_gpu"), step=9).steps
    assert many.phases["rollout"] == pytest.approx(50 * turn)
    assert many.seconds == pytest.approx(50 * turn / 2) and many.bound == "the longest episode"


def test_corrections_of_failures_by_hand() -> None:
    """HINT-SD on 2 engines and 2 ranks with an adapter: half of 8 episodes, at three of ten turns each."""
    made = planned("bfcl_4b_gpu", gpus=4)
    assert (len(made.of("engine")), len(made.of("learner"))) == (2, 2)
    assert made.config.learner.gradient_checkpointing and not made.config.prompt.think
    [step] = costs(made, thought=0, success=0.5, hint=50, critique=160).steps
    chat = 300 + 9 * 100 + 10 * 20
    assert step.phases["teacher"] == pytest.approx(4 * (chat + 3 * (50 + 20)) / 2 / 10_000)
    # Four operations for a frozen model and two to recompute; a forward pass for the candidates.
    assert step.phases["learner"] == pytest.approx(4 * chat / 2 * (6 / 6 / 1000 + 1 / 10_000))
    assert step.phases["judge"] == pytest.approx(chat / 10_000 + 160 * 0.01)  # all four at once
    trained = shape_of(made.config)
    assert step.phases["weight sync"] == pytest.approx(2 * trained.trained / trained.parameters)
    assert step.engines == pytest.approx(
        (8 * (1200 / 10_000 + 200 / 1000) / 2 + 4 * (chat / 10_000 + 0.16) / 2) / step.seconds
    )


def test_scorers_user_and_critic() -> None:
    made = planned("taubench_4b_gpu")
    assert [len(made.of(role)) for role in ("engine", "learner", "user", "teacher")] == [2, 4, 1, 1]
    [step] = costs(made, thought=0, user=30, diagnosis=7).steps
    chat, episodes = 300 + 9 * 100 + 10 * 20, 74
    assert step.phases["teacher"] == pytest.approx(episodes * (chat + 10 * (200 + 20)) / 10_000)
    turn = 1200 / 10 / 10_000 + (20 + 30) * 0.01 + 0.5  # the user writes before the next turn
    assert step.phases["rollout"] == pytest.approx(max(30 * turn, episodes * 300 / 1000))
    assert step.phases["judge"] == pytest.approx(episodes * (chat / 10_000 + 70 / 1000) / 2)
    assert step.bound == "the learner" and step.seconds == pytest.approx(step.phases["learner"] + 2)
    both = planned("alfworld_7b_gpu", "method=ppo", "loss.kl=0.01", nodes=2)
    [step] = costs(both).steps
    tokens, ranks = 1280 * 600, len(both.of("learner"))
    operations = (6 + 2 * bool(both.config.learner.gradient_checkpointing)) / 6
    assert step.phases["reference"] == pytest.approx(tokens / len(both.of("reference")) / 10_000)
    assert step.phases["critic"] == pytest.approx(tokens / ranks * (1 / 10_000 + operations / 1000))


def test_scorers_on_gpus_of_their_own_work_side_by_side() -> None:
    alone = planned("alfworld_7b_gpu", "loss.kl=0.01")
    [teacher], [reference] = alone.of("teacher"), alone.of("reference")
    assert teacher.bundle != reference.bundle
    places = [replace(one, bundle=teacher.bundle) if one == reference else one for one in alone.places]
    slow = Figures(gpu=Gpu(score=100), episode=EPISODES["alfworld"])  # so slow that scorers count
    shape = shape_of(alone.config)
    own = budget(alone, shape, slow).steps[0]
    shared = budget(replace(alone, places=tuple(places)), shape, slow).steps[0]
    assert own.phases["teacher"] > own.phases["reference"] > 0
    assert own.bound == "the teacher" and own.seconds == pytest.approx(own.phases["teacher"])
    assert shared.seconds == pytest.approx(shared.phases["teacher"] + shared.phases["reference"])
    assert budget(alone, shape, slow).steps[1].bound == "the reference policy"  # no teacher is asked


def test_a_simulated_user_beside_a_rank_delays_it() -> None:
    made = planned("taubench_4b_gpu", "method=grpo", "rollout.num_groups=9", "rollout.group_size=8")
    assert made.of("user")[0].bundle == made.of("learner")[0].bundle
    [step] = costs(made, thought=0, user=50).steps
    assert step.bound == "the learner"
    assert step.seconds == pytest.approx(step.phases["learner"] + 2 + 72 * 10 * 50 / 1000)


def test_an_endpoint_as_the_judge_takes_no_gpu() -> None:
    own = ["judge.source=endpoint", "judge.url=http://localhost/v1", "judge.model=m"]
    assert costs(planned("webshop_4b_gpu")).steps[0].phases["judge"] > 0
    assert costs(planned("webshop_4b_gpu", *own)).steps[0].phases["judge"] == 0


def test_a_guide_is_asked_for_after_the_reflections_by_hand() -> None:
    """One engine reads 1,000 tokens of a trajectory, 128 times; then 1,000 of eight reflections, 16 times."""
    made = planned("alfworld_7b_gpu", "method=grsd", "judge.characters=4000")
    assert len(made.of("engine")) == 1
    taught = costs(made, critique=150).steps[0]
    busy = (128 + 16) * (1000 / 10_000 + 150 / 1000)
    assert taught.phases["judge"] == pytest.approx(busy)
    played = 1280 * (500 / 10_000 + 100 / 1000)
    assert taught.engines == pytest.approx((played + busy) / taught.seconds)
    one_by_one = costs(planned("alfworld_7b_gpu", "method=grsd", "judge.concurrency=1"), critique=150)
    reads = (300 + 9 * 100 + 10 * 100, 8 * 150)  # a whole trajectory, and eight reflections
    waits = [count * (read / 10_000 + 150 * 0.01) for count, read in zip((128, 16), reads, strict=True)]
    assert one_by_one.steps[0].phases["judge"] == pytest.approx(sum(waits))


def test_a_warm_start_and_its_evaluation() -> None:
    made = planned("alfworld_7b_gpu", "sft.demos=100", "sft.epochs=2", "sft.hints=0.5", "steps=0")
    found = costs(made)
    ranks = len(made.of("learner"))
    operations = (6 + 2 * bool(made.config.learner.gradient_checkpointing)) / 6
    tokens = 10 * 600 + 0.5 * 10 * (500 + 200 + 20)
    playing = 100 * 10 * 0.5 / 128
    assert found.warm_start == pytest.approx(playing + 200 * tokens / ranks / 1000 * operations)
    assert (found.steps, found.evaluations) == ((), 3)


def test_evaluations_of_reflexion_take_all_trials() -> None:
    once = costs(planned("alfworld_7b_gpu", "evaluate.trials=4"))
    tried = costs(planned("alfworld_7b_gpu", "evaluate.trials=4", "evaluate.agent=reflexion"))
    assert tried.evaluation == pytest.approx(4 * once.evaluation)
    assert (tried.evaluations, tried.training) == (once.evaluations, pytest.approx(once.training))


def test_a_growing_chat_ends_where_the_context_does() -> None:
    [step] = costs(planned("bfcl_4b_gpu", gpus=4), thought=0, turns=20, observation=2000).steps
    turns = 1 + (24_576 - 300 - 20) / 2020
    chat = 300 + (turns - 1) * 2000 + turns * 20
    assert chat == pytest.approx(24_576)
    assert step.phases["teacher"] == pytest.approx(4 * (chat + 3 * 220) / 2 / 10_000)


def test_another_size_of_model_scales_every_rate() -> None:
    half = Gpu(billions=8, decode=10, token=1, prefill=10, learn=10, score=10, sync=1).of(4)
    assert half == Gpu(billions=4, decode=20, token=0.5, prefill=20, learn=20, score=20, sync=0.5)


def test_every_method_has_a_finite_budget_with_every_recipe() -> None:
    """Loading is what takes long, so each method is loaded once, and the recipes lend it their sections."""
    assert len(GPU_RECIPES) > 5 and {*ENVIRONMENTS.builtin} == {*EPISODES}
    lent = ("steps", "model", "env", "prompt", "rollout", "evaluate")
    settings = [{name: getattr(load_config(recipe), name) for name in lent} for recipe in GPU_RECIPES]
    for name in methods():
        of_method = load_config(GPU_RECIPES[0], [f"method={name}"])
        for config in (replace(of_method, **own) for own in settings):
            found = assumed(plan(config, [EIGHT] * 2, shape_of(config)))
            assert 1 < found.gpu_hours < 100_000, name
            assert sum(step.count for step in found.steps) == config.steps
            for step in found.steps:
                assert all(0 <= spent < math.inf for spent in step.phases.values())
                assert 0 < step.engines <= 1 + 1e-9 and 0 < step.ranks <= 1 + 1e-9, name


def test_a_file_replaces_what_it_states(tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text("source: one H200\ngpu: {learn: 6000}\nepisode: {turns: 14}\n")
    found = figures_for("alfworld", file)
    assert (found.gpu.learn, found.gpu.decode) == (6000, Gpu().decode)
    assert (found.episode.turns, found.episode.first) == (14, EPISODES["alfworld"].first)
    assert found.given == {"gpu.learn", "episode.turns"}
    assert "2 of 18 figures are of the file (one H200), the others assumptions" in describe_origins(found)
    assert "each of these figures is an assumption" in describe_origins(figures_for("alfworld"))


def test_a_stated_size_of_model_is_only_of_the_stated_rates(tmp_path: Path) -> None:
    (file := tmp_path / "rates.yaml").write_text("source: me\ngpu: {billions: 1}\n")
    made = planned("alfworld_7b_gpu")
    found = budget(made, shape_of(made.config), figures_for("alfworld", file))
    assert found.gpu_hours == pytest.approx(assumed(made).gpu_hours)
    file.write_text("source: me\ngpu: {billions: 3.8, learn: 100}\n")
    gpu = figures_for("alfworld", file).gpu
    assert (gpu.learn, gpu.score) == (100, pytest.approx(2 * Gpu().score))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: me\ngpu: {lern: 1}", "unknown.*Did you mean 'gpu.learn'"),
        ("source: me\ngpu: {learn: fast}", "fast"),
        ("source: me\ngpu: {learn: 0}", r"gpu.learn = 0.0: expected a number >= 1e-09"),
        ("source: me\ngpu: {learn: .inf}", "expected a number"),
        ("source: me\ngpu: {billions: 0}", r"gpu.billions = 0.0: expected a number >= 1e-09"),
        ("source: me\ngpu: {billions: .inf}", "gpu.billions = inf: expected a number"),
        ("gpu: {learn: 1}", "`source` must say"),
        ("source: me", "expected `source: TEXT` and figures"),
        ("learn: 5", "expected `source: TEXT` and figures"),
        ("- a", "expected `source: TEXT` and figures"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (file := tmp_path / "rates.yaml").write_text(text)
    with pytest.raises(RatesError, match=message):
        figures_for("alfworld", file)


def test_nothing_is_assumed_of_an_environment_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(RatesError, match=r"env.name = mine: state episode.turns, episode.first, episode.act"):
        figures_for("mine")
    (file := tmp_path / "rates.yaml").write_text("source: me\nepisode: {turns: 3, first: 9, action: 2}")
    assert figures_for("mine", file).episode == Episode(turns=3, first=9, action=2)


def test_the_command_prints_hours_origins_and_how_to_train(tmp_path: Path) -> None:
    (file := tmp_path / "rates.yaml").write_text("source: one H200\ngpu: {learn: 6000}\n")
    asked = ["plan", "alfworld_7b_gpu", "method=gigpo", "--gpus", "8", "--rates", str(file), "--seeds", "2"]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    figures = figures_for("alfworld", file)
    made = planned("alfworld_7b_gpu", "method=gigpo")
    found = budget(made, shape_of(made.config), figures)
    for line in (
        r"gpu.learn +6,000 .*one H200",
        r"gpu.decode +2,500 .*assumed",
        r"150 steps without a teacher",
        rf"one seed +{re.escape(rounded(found.hours))} +{re.escape(rounded(found.gpu_hours))}",
        rf"2 seeds +{re.escape(rounded(2 * found.hours))} +{re.escape(rounded(2 * found.gpu_hours))}",
        r"for seed in 0 1; do hindsight train alfworld_7b_gpu method=gigpo seed=\$seed "
        r'out="runs/alfworld_7b_gpu-gigpo-\$seed"; done',
    ):
        assert re.search(line, done.output), line


def test_the_command_needs_gpus_and_a_readable_file() -> None:
    none = CliRunner().invoke(app, ["plan", "nano", "--gpus", "0", "--budget"])
    assert none.exit_code == 1 and "this plan has no GPU: add --gpus 8" in none.output
    absent = CliRunner().invoke(app, ["plan", "alfworld_7b_gpu", "--gpus", "8", "--rates", "absent.yaml"])
    assert absent.exit_code == 1 and "absent.yaml: not a readable YAML file" in absent.output


def rows(heading: str) -> Iterator[tuple[str, Plan, list[str]]]:
    """Each row below a heading of the page: its line, the plan of its settings and GPUs, all cells."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        where = next((place for place, cell in enumerate(cells) if re.match(r"`\w+_gpu", cell)), None)
        if where is not None:
            recipe, *overrides = shlex.split(cells[where].strip("`"))
            *nodes, gpus = map(int, cells[where + 1].split(" × "))  # nodes × GPUs of each
            config = load_config(recipe, overrides)
            assert check_config(config) == []
            machines = [replace(EIGHT, gpus=gpus)] * (nodes[0] if nodes else 1)
            yield line, plan(config, machines, shape_of(config)), cells[: where + 2]


def written(cells: list[str], *figures: str) -> str:
    return f"| {' | '.join([*cells, *figures])} |"


def test_the_costs_of_published_tables_are_up_to_date() -> None:
    lines, right = [], []
    totals: defaultdict[str, list[float]] = defaultdict(list)
    for line, made, cells in rows("Published tables"):
        found = assumed(made)
        whole = (found.hours, found.gpu_hours, 3 * found.gpu_hours)
        totals[cells[0]].append(3 * found.gpu_hours)
        lines.append(line)
        right.append(written(cells, rounded(found.steps[0].seconds), *map(rounded, whole)))
    sums = [written([table, str(len(own))], rounded(sum(own))) for table, own in totals.items()]
    assert len(lines) > 20 and lines == right, "\n".join(["write into docs/cost.md:", *right])
    assert "\n".join(sums) in PAGE.read_text(encoding="utf-8"), "\n".join(["write:", *sums])


def test_the_model_of_a_step_is_up_to_date() -> None:
    lines, right = [], []
    for line, made, cells in rows("A step on more GPUs"):
        step, actors = assumed(made).steps[0], [len(made.of(role)) for role in ("engine", "learner")]
        shares = (f"{step.engines:.0%}", f"{step.ranks:.0%}")
        lines.append(line)
        right.append(written(cells, " + ".join(map(str, actors)), rounded(step.seconds), *shares, step.bound))
    assert len(lines) > 3 and lines == right, "\n".join(["write into docs/cost.md:", *right])


def test_the_assumed_episodes_are_those_of_the_page() -> None:
    names = ("turns", "first", "observation", "action", "user", "step")
    for name, episode in EPISODES.items():
        figures = (f"{getattr(episode, key):,g}" for key in names)
        assert written([f"`{name}`"], *figures) in PAGE.read_text(encoding="utf-8")


def test_tables_have_a_row_for_each_figure() -> None:
    figures, console = figures_for("searchqa"), Console(width=120, record=True)
    for table in budget_tables(assumed(planned("alfworld_7b_gpu", "sft.demos=10")), figures, seeds=1):
        console.print(table)
    text = console.export_text()
    assert all(item.key in text for item in figures.all()) and "3 seeds" not in text
    own = replace(load_config("nano"), out="runs/own", method="", seed=4)
    trains = 'hindsight train x seed=$seed out="runs/own-$seed"'
    assert seeds_command("hindsight train x", own, 2) == f"for seed in 4 5; do {trains}; done"
