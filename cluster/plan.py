"""What is decided about a run before it starts: bundles of resources, and the actor in each place of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hindsight.cluster.memory import Need
from hindsight.configs.schema import Config
from hindsight.envs.runtime.pool import SHARD_CPUS

# What a placed actor is: `user` is a simulated user that the run serves itself.
Role = Literal["engine", "learner", "critic", "teacher", "reference", "user"]


class PlanError(ValueError):
    """The run does not fit the machines; the message has the numbers and what to change."""

    def __init__(self, message: str, progress: int = 0) -> None:
        """`progress`: what was wrong with the draft: counts 0, memory 1 or 2, nodes 3, replicas 4."""
        super().__init__(message)
        self.progress = progress


@dataclass(frozen=True)
class Node:
    """One machine."""

    cpus: float
    ram_gib: float
    gpus: int = 0
    gpu_gib: float = 0.0  # memory of each GPU
    bfloat16: bool = True  # whether its CPU has instructions for it


@dataclass(frozen=True)
class PlanDraft:
    """One way to divide the machines."""

    engines: int
    parallel: int  # GPUs of each engine
    ranks: int  # 0: the run has no learner
    stage: int
    checkpointing: bool
    together: bool = False  # a GPU has an engine, a rank and its scorers
    in_turn: bool = False  # and they use it one after another

    @property
    def shares_memory(self) -> bool:
        """Whether an engine can open its rank's parameters: whole, and on the same GPU at the same time."""
        return self.ranks > 0 and self.together and not self.in_turn and self.stage < 3

    alone: bool = False  # scorers and simulated user have GPUs of their own


@dataclass(frozen=True)
class Place:
    """One actor: its role, what it gets of a bundle, and the memory that it is expected to need."""

    role: Role
    bundle: int
    cpus: float
    gpus: float  # a fraction if it shares its GPU
    need: Need  # on each of its GPUs; without GPUs, of RAM


@dataclass(frozen=True)
class Plan:
    """Bundles of resources, each on one node, and the actors in them."""

    config: Config  # with every setting that was left to the plan
    bundles: tuple[dict[str, float], ...]  # in Ray's form
    places: tuple[Place, ...]
    gpus: int  # in the cluster
    gpu_gib: float  # memory of each
    per_node: int = 0  # GPUs of the node that has most

    def cores(self, place: Place) -> float:
        """The share of its node's cores that an actor computes with: its bundle's share of the node's GPUs.

        Without GPUs all actors share the cores; on one GPU they do, too, for most of them work in turn.
        """
        return self.bundles[place.bundle]["GPU"] / self.per_node if place.gpus else 1.0

    def of(self, role: Role) -> list[Place]:
        """The places of a role."""
        return [place for place in self.places if place.role == role]

    @property
    def unused(self) -> int:
        """GPUs that nothing runs on."""
        return self.gpus - round(sum(bundle.get("GPU", 0.0) for bundle in self.bundles))

    @property
    def in_turn(self) -> bool:
        """Whether engine, scorers and learner use their GPU one after the other."""
        return self.config.cluster.sharing == "in_turn"

    @property
    def crowded(self) -> bool:
        """Whether an engine shares its GPU, so that actors have to start one after another."""
        return any(place.gpus < 1 for place in self.of("engine") + self.of("user") if place.gpus)


def check_nodes(bundles: Sequence[dict[str, float]], nodes: Sequence[Node], shards: int) -> None:
    """Raises PlanError unless every bundle finds a node, the largest first, and the shards find CPUs."""
    free = [{"CPU": node.cpus, "GPU": float(node.gpus)} for node in nodes]
    for bundle in sorted(bundles, key=lambda bundle: -bundle.get("GPU", 0.0)):
        fitting = (node for node in free if all(node[kind] >= size - 1e-9 for kind, size in bundle.items()))
        node = next(fitting, None)
        if node is None:
            wanted = " and ".join(f"{size:g} {kind}" for kind, size in bundle.items())
            raise PlanError(
                f"no node has {wanted} left for one of {len(bundles)} bundles: lower rollout.engines, "
                "rollout.tensor_parallel or learner.ranks, or add nodes",
                progress=3,
            )
        for kind, size in bundle.items():
            node[kind] -= size
    if sum(node["CPU"] for node in free) < shards * SHARD_CPUS - 1e-9:
        raise PlanError(
            f"{shards} shards need {shards * SHARD_CPUS:g} CPUs in addition to {len(bundles)} bundles: "
            "lower env.shards, or add nodes",
            progress=3,
        )
