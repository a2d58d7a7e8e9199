"""Who runs where: every recipe on every usual number of GPUs, and the memory estimate by hand."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from hindsight.cluster.failures import RunError
from hindsight.cluster.memory import Shape, engine_need, learner_need
from hindsight.cluster.plan import Node, Plan, PlanError
from hindsight.cluster.planner import USABLE, plan
from hindsight.cluster.planning import (
    alternatives,
    model_shape,
    plan_notes,
    plan_run,
    plan_table,
    with_adapter,
)
from hindsight.cluster.start import variables
from hindsight.configs.load import load_config, recipes
from hindsight.configs.schema import Config, Lora
from hindsight.learner.rank import learner_env
from hindsight.rollout.outline import KNOWN, outline, trained_parameters

RECIPES = sorted(name for name in recipes() if not name.startswith("base"))
MACHINES = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 8), (2, 8), (8, 8)]  # nodes, GPUs of each
MODEL = "Qwen/Qwen2.5-7B-Instruct"


@cache
def model(name: str) -> Any:
    return outline(name)


@cache
def loaded(recipe: str, *overrides: str) -> Config:
    """Each once: loading takes longer than planning."""
    return load_config(recipe, overrides)


def shape(config: Config) -> Shape:
    return model_shape(model(config.model.path), config.learner.lora)


def machines(nodes: int, gpus: int, gib: float) -> list[Node]:
    return [Node(cpus=64, ram_gib=512, gpus=gpus, gpu_gib=gib)] * nodes


def planned(recipe: str, nodes: int, gpus: int, gib: float, *overrides: str) -> Plan:
    config = loaded(recipe, *overrides)
    return plan(config, machines(nodes, gpus, gib), shape(config))


def counts(made: Plan) -> Counter[str]:
    return Counter(place.role for place in made.places)


def check_fits(made: Plan, gib: float) -> None:
    """No GPU is given out twice, and what is on it at one time fits into its memory."""
    for index, bundle in enumerate(made.bundles):
        places = [place for place in made.places if place.bundle == index]
        assert sum(place.gpus for place in places) <= bundle["GPU"] + 1e-9
        assert sum(place.cpus for place in places) <= bundle["CPU"] + 1e-9
        needs = {place.role: place.need.total for place in places}
        if made.in_turn:
            learning = needs.pop("learner", 0.0) + needs.pop("critic", 0.0)
            resident = needs.pop("user", 0.0)
            assert resident + max(learning, *needs.values()) <= USABLE * gib + 1e-6
        else:
            assert sum(needs.values()) <= USABLE * gib + 1e-6
    config = made.config
    assert len(made.of("engine")) == config.rollout.engines >= 1
    assert len(made.of("learner")) == config.learner.ranks >= 1
    assert config.learner.zero_stage is not None and config.weight_sync.transport != "auto"
    assert 0 < config.rollout.gpu_memory_utilization <= USABLE
    assert bool(made.of("teacher")) == config.needs_teacher
    assert bool(made.of("reference")) == config.needs_reference
    assert made.unused >= 0
    for place in made.places:
        assert made.cores(place) == (made.bundles[place.bundle]["GPU"] / made.per_node if made.gpus else 1.0)


@pytest.mark.parametrize("gib", [40, 80, 141])
@pytest.mark.parametrize(("nodes", "gpus"), MACHINES)
def test_every_recipe_has_a_plan_that_fits_or_a_refusal_that_says_what_to_change(
    nodes: int, gpus: int, gib: float
) -> None:
    for recipe in RECIPES:
        config = loaded(recipe)
        try:
            made = plan(config, machines(nodes, gpus, gib), shape(config))
        except PlanError as error:
            assert f"of {gib:g} GiB" in str(error), recipe
            lora = with_adapter(config).learner.lora
            shapes = {"": shape(config), "lora": model_shape(model(config.model.path), lora)}
            assert alternatives(config, machines(nodes, gpus, gib), shapes), recipe
            continue
        check_fits(made, gib)


def test_small_models_run_on_one_gpu_side_by_side_and_large_ones_in_turn() -> None:
    small = planned("alfworld", 1, 1, 40)
    assert counts(small) == {"engine": 1, "learner": 1, "teacher": 1} and not small.in_turn
    assert small.crowded and small.config.weight_sync.transport == "object_store"
    large = planned("webshop_4b_gpu", 1, 1, 141)
    assert large.in_turn and large.config.cluster.sharing == "in_turn"
    with pytest.raises(PlanError, match=r"1 GPU of 141 GiB: an engine needs at least .*it may use 7.6 GiB"):
        planned("webshop_4b_gpu", 1, 1, 141, "cluster.sharing=side_by_side")
    assert planned("alfworld", 1, 1, 40, "cluster.sharing=in_turn").in_turn


def test_cuda_ipc_needs_an_engine_beside_each_rank() -> None:
    assert (
        planned("alfworld", 1, 1, 40, "cluster.sharing=in_turn").config.weight_sync.transport
        == "object_store"
    )
    assert planned("alfworld", 1, 1, 40, "learner.lora.rank=8").config.weight_sync.transport == "object_store"
    both = planned("alfworld", 1, 2, 80, "weight_sync.transport=ipc")
    assert both.crowded and counts(both)["engine"] == counts(both)["learner"]
    with pytest.raises(PlanError, match=r"weight_sync.transport = ipc needs engine and learner side by side"):
        planned("alfworld", 1, 1, 40, "weight_sync.transport=ipc", "cluster.sharing=in_turn")
    with pytest.raises(PlanError, match=r"weight_sync.transport = ipc needs GPUs"):
        planned("alfworld", 1, 0, 0, "weight_sync.transport=ipc")


def test_two_gpus_are_split_between_engine_and_learner() -> None:
    made = planned("alfworld", 1, 2, 80)
    [engine], [learner], [teacher] = made.of("engine"), made.of("learner"), made.of("teacher")
    assert engine.gpus == 1 and engine.bundle != learner.bundle == teacher.bundle
    assert not made.crowded and made.config.weight_sync.transport == "nccl"


def test_every_learner_rank_has_a_teacher_beside_it() -> None:
    made = planned("alfworld_7b_gpu", 1, 8, 80)
    beside = [place.bundle for place in made.of("teacher")]
    assert beside == [place.bundle for place in made.of("learner")]
    assert sum(place.gpus for place in made.of("engine")) + len(beside) == 8
    assert made.unused == 0 and made.config.teacher.replicas == len(beside)


def test_no_gpu_is_reserved_for_a_role_that_the_method_does_not_use() -> None:
    assert set(counts(planned("alfworld_7b_gpu", 1, 8, 80, "method=grpo"))) == {"engine", "learner"}
    with_all = planned("alfworld_7b_gpu", 2, 8, 80, "method=grpo", "credit.advantage=gae", "loss.kl=0.01")
    assert set(counts(with_all)) == {"engine", "learner", "critic", "reference"}


def test_what_the_user_sets_is_kept() -> None:
    own = ["learner.ranks=4", "rollout.engines=2", "learner.zero_stage=3"]
    made = planned("alfworld_7b_gpu", 1, 8, 80, *own)
    assert (made.config.learner.ranks, made.config.rollout.engines, made.unused) == (4, 2, 1)
    assert any("1 of 8 GPUs stay unused" in note for note in plan_notes(made))
    with pytest.raises(PlanError, match=r"rollout.engines = 9 on 1 each, and \d for the rest, are more"):
        planned("alfworld_7b_gpu", 1, 8, 80, "rollout.engines=9")
    low = planned("alfworld", 1, 1, 80, "rollout.gpu_memory_utilization=0.3")
    assert low.config.rollout.gpu_memory_utilization == 0.3


def test_memory_that_the_user_gives_the_engine_is_planned_with() -> None:
    with pytest.raises(PlanError, match=r"engine needs at least .*utilization = 0.9 gives it"):
        planned("alfworld", 1, 1, 40, "rollout.gpu_memory_utilization=0.9", "cluster.sharing=side_by_side")
    with pytest.raises(PlanError, match=r"utilization = 0.05 gives it"):
        planned("alfworld_7b_gpu", 1, 8, 80, "rollout.gpu_memory_utilization=0.05")


def test_engines_and_teachers_that_the_user_counts_leave_room_for_each_other() -> None:
    made = planned("alfworld", 1, 8, 80, "rollout.engines=6")
    assert (counts(made)["engine"], counts(made)["learner"], made.unused) == (6, 2, 0)
    one = planned("alfworld", 1, 8, 80, "teacher.replicas=1")
    assert counts(one)["teacher"] == one.config.teacher.replicas == 1
    with pytest.raises(PlanError, match=r"teacher.replicas = 3: the plan has room for 2, one next to"):
        planned("alfworld", 1, 2, 80, "teacher.replicas=3")
    turns = planned("alfworld", 1, 2, 80, "cluster.sharing=in_turn")
    assert turns.in_turn and counts(turns) == {"engine": 2, "learner": 2, "teacher": 2}


def test_in_turn_only_with_states_that_deepspeed_can_move_and_ram_that_holds_them() -> None:
    assert planned("alfworld", 1, 1, 40, "cluster.sharing=in_turn").config.learner.zero_stage == 2
    wide = ["cluster.sharing=in_turn", "model.dtype=float32"]
    assert planned("alfworld", 1, 1, 40, *wide).config.learner.zero_stage == 1
    with pytest.raises(PlanError):
        planned("alfworld", 1, 1, 40, "cluster.sharing=in_turn", "learner.zero_stage=3")
    config = loaded("webshop_4b_gpu")
    with pytest.raises(PlanError, match=r"in turn, \d+ GiB would wait in 16 GiB of RAM"):
        plan(config, [Node(64, 16, gpus=1, gpu_gib=141)], shape(config))
    assert planned("webshop_4b_gpu", 1, 1, 141).config.rollout.max_staleness == 0


@pytest.mark.parametrize(("nodes", "gpus"), MACHINES)
def test_an_evaluation_takes_engines_and_the_user_only(nodes: int, gpus: int) -> None:
    for recipe in RECIPES:
        config = loaded(recipe, "learner.ranks=4", "cluster.sharing=in_turn")
        made = plan(config, machines(nodes, gpus, 141), shape(config), learner=False, teacher=False)
        user = {"user": 1} if config.env.served_model is not None else {}
        assert counts(made) == {"engine": counts(made)["engine"]} | user and not made.in_turn
        assert made.unused >= 0 and made.config.rollout.engines == counts(made)["engine"]


def test_bundles_have_to_fit_on_nodes() -> None:
    wide = ["learner.lora.rank=32", "rollout.tensor_parallel=2", "rollout.engines=4", "learner.ranks=1"]
    with pytest.raises(PlanError, match=r"no node has 0.5 CPU and 2 GPU left"):
        planned("alfworld_7b_gpu", 3, 3, 141, *wide, "method=grpo")


def test_a_recipe_that_needs_gpus_is_refused_without_and_runs_on_cpus_if_asked() -> None:
    with pytest.raises(PlanError, match=r"cluster.gpus = required, and Ray sees no GPU.*cluster.gpus=none"):
        planned("alfworld_7b_gpu", 1, 0, 0)
    made = planned("alfworld_7b_gpu", 1, 8, 80, "cluster.gpus=none", "model.path=nano", "model.dtype=float32")
    assert not any(place.gpus for place in made.places)
    with pytest.raises(PlanError, match=r"of RAM, and there are 8.0"):
        plan(loaded("alfworld"), [Node(4, 8.0)], shape(loaded("alfworld")))


def test_cpus_that_only_emulate_bfloat16_compute_in_float32() -> None:
    def dtype(*nodes: Node, recipe: str = "alfworld") -> str:
        return plan(loaded(recipe), nodes, shape(loaded(recipe))).config.model.dtype

    slow, fast = Node(8, 64, bfloat16=False), Node(8, 64)
    assert dtype(fast) == "bfloat16" and dtype(slow) == dtype(fast, slow) == "float32"
    assert dtype(Node(64, 512, gpus=2, gpu_gib=80, bfloat16=False)) == "bfloat16"
    assert dtype(fast, recipe="nano") == "float32"  # the recipe says so


def test_two_cores_hold_every_recipe_without_gpus() -> None:
    for recipe in (name for name in RECIPES if not name.endswith("_gpu")):
        config = loaded(recipe)
        made = plan(config, [Node(cpus=2, ram_gib=24)], shape(config))
        assert counts(made)["engine"] == counts(made)["learner"] == 1
    with pytest.raises(PlanError, match=r"no node has 0.5 CPU left .*lower rollout.engines"):
        plan(loaded("alfworld", "rollout.engines=4"), [Node(2, 64)], shape(loaded("alfworld")))


def test_seventy_billion_parameters_on_two_nodes() -> None:
    """The plan that docs/cluster.md describes."""
    large = ["model.path=Qwen/Qwen2.5-72B-Instruct", "learner.lora.rank=32"]
    made = planned("alfworld_7b_gpu", 2, 8, 80, *large)
    assert made.config.rollout.tensor_parallel >= 4 and made.config.learner.zero_stage == 3
    assert made.of("teacher")[0].gpus >= 2  # its layers are spread over several GPUs of one node
    check_fits(made, 80)


def test_parameters_are_counted_as_published() -> None:
    billions = {name: sum(p.numel() for p in model(name).parameters()) / 1e9 for name in KNOWN}
    assert {name: round(count, 1) for name, count in billions.items()} == {
        MODEL: 7.6,
        "Qwen/Qwen2.5-72B-Instruct": 72.7,
        "Qwen/Qwen3-4B-Instruct-2507": 4.0,
    }
    lora = Lora(rank=8, targets=["q_proj"])
    assert trained_parameters(model(MODEL), lora) == 28 * 8 * (3584 + 3584)


def test_the_estimate_by_hand() -> None:
    """7.6 B parameters: 2 bytes each, and 12 + 6 for Adam and gradients; 28 layers of 2 · 4 · 128 keys."""
    config = loaded("alfworld_7b_gpu")
    own, gib = shape(config), 2**30
    need = learner_need(own, config, ranks=4, stage=3, checkpointing=True)
    assert need.parts["optimizer"] == pytest.approx(own.parameters * 12 / 4 / gib)
    assert need.parts["weights"] == pytest.approx((own.parameters * 2 / 4 + 500_000_000 * 2) / gib)
    assert engine_need(own, config, 1).parts["weights"] == pytest.approx(own.parameters * 2 / gib)
    assert engine_need(own, config, 2).parts["KV cache"] == pytest.approx(2560 * 28 * 1024 * 2 / 2 / gib)
    assert learner_need(own, config, 1, 1, True).total > 100 > learner_need(own, config, 8, 3, True).total


def test_the_table_names_every_role_and_the_refusal_what_would_fit() -> None:
    made = planned("alfworld", 1, 1, 80)
    columns = plan_table(made).columns
    assert list(columns[0].cells) == ["engine", "learner", "teacher"]
    assert set(columns[2].cells) == {"GPU 0"}
    large = planned(
        "alfworld_7b_gpu", 2, 8, 80, "model.path=Qwen/Qwen2.5-72B-Instruct", "learner.lora.rank=32"
    )
    assert list(plan_table(large).columns[2].cells) == ["GPU 0-3, 4 each", "GPU 4-11", "GPU 12-15, 4 each"]
    with pytest.raises(RunError, match=r"It would fit with learner.lora.rank=32"):
        plan_run(loaded("webshop_7b_gpu"), machines(1, 1, 80), MODEL)


def test_only_actors_with_a_gpu_see_one() -> None:
    """Ray leaves CUDA_VISIBLE_DEVICES alone for actors that were given none."""
    for env in (variables({}, gpus=0)["runtime_env"]["env_vars"], learner_env(Config(), gpu=False)):
        assert env["CUDA_VISIBLE_DEVICES"] == ""
    for env in (variables({}, gpus=0.5)["runtime_env"]["env_vars"], learner_env(Config(), gpu=True)):
        assert "CUDA_VISIBLE_DEVICES" not in env
