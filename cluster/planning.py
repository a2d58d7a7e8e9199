"""The plan of a run on the machines that there are, and the plan as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from rich import box
from rich.table import Table

from hindsight.cluster.failures import RunError
from hindsight.cluster.memory import Shape, shape_of
from hindsight.cluster.plan import Node, Place, Plan, PlanError
from hindsight.cluster.planner import plan
from hindsight.configs.schema import Config, Lora
from hindsight.rollout.outline import outline, trained_parameters


def plan_run(
    config: Config, nodes: Sequence[Node], model: str, *, learner: bool = True, teacher: bool = True
) -> Plan:
    """Plan a run of `model`, a name or folder, on these nodes.

    Raises:
        RunError: it does not fit; the message has the numbers and what would fit.
        ModelMissing: the model's configuration cannot be read.
    """
    lm = outline(model)
    shape = model_shape(lm, config.learner.lora)
    served = config.env.served_model  # "": the student's
    user = model_shape(outline(served), Lora()) if served else None
    try:
        return plan(config, nodes, shape, user=user, learner=learner, teacher=teacher)
    except PlanError as error:
        shapes = {"": shape, "lora": model_shape(lm, with_adapter(config).learner.lora)}
        fitting = alternatives(config, nodes, shapes, user=user, learner=learner, teacher=teacher)
        advice = f". It would fit with {', or '.join(fitting)}" if fitting else ""
        raise RunError(f"{error}{advice}") from error


def alternatives(config: Config, nodes: Sequence[Node], shapes: dict[str, Shape], **roles: Any) -> list[str]:
    """At most three changes with which `plan` would succeed, the cheapest first.

    Args:
        shapes: the student's shape as it is ("") and with an adapter ("lora").
        roles: further arguments of `plan`.
    """
    longest, lora = config.model.max_length, with_adapter(config)
    tokens = f"learner.micro_batch_tokens={longest} teacher.batch_tokens={longest}"
    tries = [(tokens, shorter(config), nodes, "")]
    smallest, words = shorter(lora), tokens
    if lora != config:
        words = f"learner.lora.rank={lora.learner.lora.rank} {tokens}"
        tries += [(words.partition(" ")[0], lora, nodes, "lora"), (words, smallest, nodes, "lora")]
    gib = max((node.gpu_gib for node in nodes), default=0.0)
    there = sum(node.gpus for node in nodes)
    for count in (count for count in (2, 4, 8) if gib and count > there):
        more = [Node(cpus=64, ram_gib=1024, gpus=count, gpu_gib=gib)]
        tries += [(f"{count} GPUs of {gib:g} GiB", config, more, "")]
        tries += [(f"{words} on {count} GPUs of {gib:g} GiB", smallest, more, "lora")]
    found = []
    for what, changed, machines, kind in tries:
        try:
            plan(changed, machines, shapes[kind], **roles)
        except PlanError:
            continue
        found.append(what)
    return found[:3]


def with_adapter(config: Config) -> Config:
    """`config` training an adapter, of rank 32 unless it has one."""
    rank = config.learner.lora.rank or 32
    return replace(config, learner=replace(config.learner, lora=replace(config.learner.lora, rank=rank)))


def shorter(config: Config) -> Config:
    """`config` with the smallest token budgets that hold its longest sequence."""
    longest = config.model.max_length
    learner = replace(config.learner, micro_batch_tokens=longest)
    return replace(config, learner=learner, teacher=replace(config.teacher, batch_tokens=longest))


def model_shape(lm: Any, lora: Lora) -> Shape:
    """The shape of a model of which all is trained, or an adapter."""
    return shape_of(lm, trained_parameters(lm, lora))


def plan_table(made: Plan) -> Table:
    """A row per role: how many actors, where, and the memory that each is expected to need."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("role", no_wrap=True)
    table.add_column("actors", justify="right")
    table.add_column("on", no_wrap=True)
    table.add_column("GiB", justify="right")
    table.add_column("estimated memory of each")
    for role in dict.fromkeys(place.role for place in made.places):
        places = made.of(role)
        need = places[0].need
        parts = sorted(need.parts.items(), key=lambda part: -part[1])
        held = ", ".join(f"{name} {size:.1f}" for name, size in parts if size >= 0.05)
        table.add_row(role, str(len(places)), _where(made, places), f"{need.total:.1f}", held)
    return table


def plan_notes(made: Plan) -> list[str]:
    """What the table does not show: what was decided, and what nothing runs on."""
    config = made.config
    learner, rollout = config.learner, config.rollout
    lines = [
        f"model.dtype={config.model.dtype}, learner.zero_stage={learner.zero_stage}, "
        f"learner.gradient_checkpointing={str(learner.gradient_checkpointing).lower()}, "
        f"weight_sync.transport={config.weight_sync.transport}"
        + (f", rollout.gpu_memory_utilization={rollout.gpu_memory_utilization:g}" if made.gpus else "")
    ]
    if made.in_turn:
        lines.append("cluster.sharing=in_turn: engine, scorers and learner use their GPU one after another")
    if made.unused:
        lines.append(
            f"{made.unused} of {made.gpus} GPUs stay unused: raise rollout.num_groups, rollout.engines or "
            "learner.ranks"
        )
    return lines


def _where(made: Plan, places: Sequence[Place]) -> str:
    """The GPUs of these places, numbered through the cluster: "GPU 0-3, 2 each"."""
    if not made.gpus:
        return "CPU"
    starts = list(accumulate((round(bundle["GPU"]) for bundle in made.bundles), initial=0))
    held = sorted(gpu for one in places for gpu in range(starts[one.bundle], starts[one.bundle + 1]))
    runs = [[held[0], held[0]]]
    for gpu in held[1:]:
        if gpu == runs[-1][1] + 1:
            runs[-1][1] = gpu
        else:
            runs.append([gpu, gpu])
    names = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
    each = f", {places[0].gpus:g} each" if places[0].gpus > 1 else ""
    return f"GPU {names}{each}"
