"""A model of the training step: its time and how busy the GPUs are, from rates that are measured or stated.

    python -m benchmarks.scale [--gib 80] [--decode 2500 --prefill 20000 --learn 4500 --score 20000 ...]

Nothing runs. The plan for 1, 8, 64 and 256 GPUs says how many engines, ranks and teachers there are; what a
step costs follows from the load of SERL's ALFWorld recipe and the rates of one GPU. The defaults are
assumptions for a 7B model on one 80 GiB GPU of the H100 class, not measurements of ours: give your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hindsight.cluster.plan import Node, Plan, PlanError
from hindsight.cluster.planner import plan
from hindsight.cluster.planning import model_shape
from hindsight.configs.load import load
from hindsight.rollout.outline import outline

HIDDEN = 0.44  # of the teacher's time behind rollouts: `benchmarks.scoring`, half of the episodes succeed


@dataclass(frozen=True)
class Rates:
    """What one GPU does."""

    decode: float = 2500.0  # tokens/s of an engine with a full batch
    latency: float = 0.012  # s per token of a sequence, however few there are
    prefill: float = 20_000.0  # tokens/s
    learn: float = 4500.0  # tokens/s, forward and backward
    score: float = 20_000.0  # tokens/s, forward
    publish: float = 1.0  # s for one sync
    step: float = 0.02  # s of an environment per turn


@dataclass(frozen=True)
class Load:
    """What a step asks for."""

    episodes: int
    turns: float = 20.0  # mean
    longest: float = 50.0  # turns of the episode that the step waits for
    prompt: float = 400.0  # tokens per turn that are not in the prefix cache
    response: float = 150.0  # tokens per turn
    context: float = 1500.0  # tokens per turn that learner and teacher read
    passes: float = 1.33  # of the learner: above 1 the old log-probs are recomputed


@dataclass(frozen=True)
class Step:
    """Seconds of one step, and the share of them in which GPUs compute."""

    seconds: float
    engines: float  # busy share of an engine's GPU
    learners: float  # of a learner's and teacher's GPU
    bound: str  # what the step waits for


def step(
    rates: Rates, load: Load, engines: int, ranks: int, teachers: int, staleness: int, shared: bool = False
) -> Step:
    """Time of a step in the steady state.

    Synchronously the phases follow each other, but for the teacher, which scores trajectories as they end:
    HIDDEN of its time. With staleness S, S + 1 batches of episodes are in
    flight, so a long episode holds up a step only if it takes longer than S + 1 of them. On `shared` GPUs
    nothing overlaps.
    """
    turn = load.prompt / rates.prefill + load.response / rates.decode
    busy = load.episodes * load.turns * turn / engines
    slowest = load.longest * (load.prompt / rates.prefill + load.response * rates.latency + rates.step)
    tokens = load.episodes * load.turns * load.context
    scoring, learning = tokens / (teachers * rates.score), load.passes * tokens / (ranks * rates.learn)
    if staleness == 0:
        hidden = 0.0 if shared else HIDDEN * scoring
        parts = {"rollouts": max(busy, slowest), "learner": learning + scoring - hidden + rates.publish}
        seconds, bound = (
            sum(parts.values()),
            "the longest episode" if slowest > busy else "each phase in turn",
        )
    else:
        parts = {
            "engines": busy + rates.publish,
            "learner": learning + scoring + rates.publish,
            "the longest episode": slowest / (staleness + 1),
        }
        bound = max(parts, key=lambda part: parts[part])
        seconds = parts[bound]
    return Step(seconds, busy / seconds, (learning + scoring) / seconds, bound)


def planned(gpus: int, gib: float, *overrides: str) -> Plan:
    """The plan for so many GPUs, eight to a node."""
    config = load("alfworld_7b_gpu", overrides)
    nodes = [Node(cpus=64, ram_gib=1024, gpus=min(8, gpus), gpu_gib=gib)] * max(1, gpus // 8)
    return plan(config, nodes, model_shape(outline(config.model.path), config.learner.lora))


def main(
    gib: Annotated[float, typer.Option(help="memory of a GPU")] = 80.0,
    decode: float = Rates.decode,
    latency: float = Rates.latency,
    prefill: float = Rates.prefill,
    learn: float = Rates.learn,
    score: float = Rates.score,
    publish: float = Rates.publish,
) -> None:
    """Print step time and busy shares, synchronous and asynchronous; groups grow with the GPUs."""
    rates = Rates(decode, latency, prefill, learn, score, publish)
    table = Table(title=f"SERL on ALFWorld, 7B, GPUs of {gib:g} GiB: a model, not a measurement")
    for name in ("GPUs", "groups", "engines + ranks", "staleness", "s/step", "busy", "waits for"):
        table.add_column(name, justify="right" if name != "waits for" else "left")
    for gpus in (1, 8, 64, 256):
        groups = max(16, 2 * gpus)
        own = [f"rollout.num_groups={groups}", *(["learner.lora.rank=32"] if gpus == 1 else [])]
        try:
            made = planned(gpus, gib, *own)
        except PlanError as error:
            table.add_row(str(gpus), str(groups), *[""] * 4, str(error)[:60])
            continue
        engines, ranks, teachers = (len(made.of(role)) for role in ("engine", "learner", "teacher"))
        for staleness in (0,) if gpus == 1 else (0, 1):
            found = step(rates, Load(8 * groups), engines, ranks, teachers, staleness, made.crowded)
            busy = (engines * found.engines + ranks * found.learners) / gpus
            shown = f"{busy:.0%} ({found.engines:.0%} + {found.learners:.0%})"
            row = (
                gpus,
                groups,
                f"{engines} + {ranks}",
                staleness,
                f"{found.seconds:.0f}",
                shown,
                found.bound,
            )
            table.add_row(*map(str, row))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
