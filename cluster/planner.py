"""Who runs where: a pure function from settings, nodes and the model's shape to bundles and places.

    no GPU     everything shares the cores
    1 GPU      everything on it: side by side if it fits, else in turn
    2 or more  engines on GPUs of their own; teacher and reference policy next to the learner's ranks, whose
               GPUs are idle while episodes are played. Where that does not fit, as on one GPU

`drafts` yields what could be done, best first; the first that fits is the plan. What the user sets is kept in
all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from hindsight.cluster.memory import (
    KEPT,
    PROCESS,
    Need,
    Shape,
    cpu_engine_need,
    engine_need,
    learner_need,
    scorer_need,
)
from hindsight.cluster.plan import Node, Place, Plan, PlanDraft, PlanError, Role, check_nodes
from hindsight.configs.schema import Config

USABLE = 0.92  # of a GPU's memory: the rest is for fragmentation
WEIGHTS = 0.75  # most of an engine's memory that weights should take: the rest is its cache
EPISODES = 4  # per engine and per rank at least, for another one to be worth its GPU
# The learner's share of the GPUs. With one message per turn it reads each prompt again that the engines have
# in their cache, so it has more to do (cluster/budget.py).
LEARNERS = {"history": 0.5, "window": 0.75}
USERS = 4  # conversations that a simulated user's cache should hold
CPUS = 0.5  # that Ray counts for an actor with a GPU
ON_HOST = ("weights", "optimizer", "gradients", "average")  # what moves to RAM between turns


def plan(
    config: Config,
    nodes: Sequence[Node],
    shape: Shape,
    *,
    user: Shape | None = None,
    learner: bool = True,
    teacher: bool = True,
) -> Plan:
    """Decide what runs where.

    Args:
        shape: of the student. user: of a simulated user's model, if that is another one.
        learner, teacher: whether the run has them.

    Raises:
        PlanError: nothing fits; the message has the numbers.
    """
    planner = _Planner(config, nodes, shape, user or shape, learner=learner, teacher=teacher)
    closest = PlanError(planner.contradiction, progress=-1)
    for draft in planner.drafts():
        if learner and config.weight_sync.transport == "ipc" and not draft.shares_memory:
            continue
        try:
            return planner.build(draft)
        except PlanError as error:
            closest = error if error.progress >= closest.progress else closest
    raise closest


class _Planner:
    """The arithmetic of one plan."""

    def __init__(
        self,
        config: Config,
        nodes: Sequence[Node],
        shape: Shape,
        user: Shape,
        *,
        learner: bool,
        teacher: bool,
    ) -> None:
        self.nodes, self.shape, self.user_shape, self.learner = nodes, shape, user, learner
        self.gpus = sum(node.gpus for node in nodes) if config.cluster.gpus != "none" else 0
        if config.model.dtype == "auto":
            native = self.gpus > 0 or all(node.bfloat16 for node in nodes)
            config = replace(config, model=replace(config.model, dtype="bfloat16" if native else "float32"))
        self.config = config
        self.widest = max((node.gpus for node in nodes), default=0)
        self.gib = min((node.gpu_gib for node in nodes if node.gpus), default=0.0)
        self.usable = USABLE * self.gib
        self.scorers: list[Role] = ["teacher"] * (teacher and config.needs_teacher)
        self.scorers += ["reference"] * (learner and config.needs_reference)
        self.critic = learner and config.needs_critic
        self.user = config.env.served_model is not None
        self.machines = f"{self.gpus} GPU{'' if self.gpus == 1 else 's'} of {self.gib:g} GiB"
        self.contradiction = (
            f"{self.machines}: engine and learner have to share, which allows neither "
            "rollout.tensor_parallel > 1 nor weight_sync.transport = nccl, and as many engines as ranks"
        )
        if config.weight_sync.transport == "ipc":
            self.contradiction = (
                f"{self.machines}: weight_sync.transport = ipc needs engine and learner side by side on the "
                "same GPUs, and learner.zero_stage below 3: set it to auto"
            )

    def drafts(self) -> Iterator[PlanDraft]:
        """What could be done, best first.

        Raises:
            PlanError: a setting rules out everything.
        """
        rollout, learner, sharing = self.config.rollout, self.config.learner, self.config.cluster.sharing
        if self.gpus == 0:
            self._check_cpus()
            for stage, checkpointing in self._stages():
                ranks = (learner.ranks or 1) * self.learner
                turns = sharing == "in_turn"
                yield PlanDraft(rollout.engines or 1, 1, ranks, stage, checkpointing, in_turn=turns)
            return
        if self.gpus > 1 and (sharing != "in_turn" or not self.learner):
            yield from self._apart()
        count = learner.ranks * self.learner or rollout.engines or min(self.gpus, self._episodes())
        even = rollout.engines in (0, count) and rollout.tensor_parallel in (0, 1) and count <= self.gpus
        if even and self.config.weight_sync.transport != "nccl":
            yield from self._together(count)

    def _apart(self) -> Iterator[PlanDraft]:
        """Engines on GPUs of their own; scorers and user share the ranks' GPUs or have their own."""
        parallel, engines = self._parallel(), self.config.rollout.engines
        for alone, ranks in product([False, True], self._ranks(parallel)):
            for stage, checkpointing in self._stages(ranks):
                yield PlanDraft(engines, parallel, ranks, stage, checkpointing, alone=alone)

    def _together(self, count: int) -> Iterator[PlanDraft]:
        """As many engines as ranks, on the same GPUs: side by side, or else in turn."""
        learner, sharing, ranks = self.config.learner, self.config.cluster.sharing, count * self.learner
        if sharing != "in_turn" or not self.learner:
            for stage, checkpointing in self._stages(ranks):
                yield PlanDraft(count, 1, ranks, stage, checkpointing, together=True)
        if sharing != "side_by_side" and self.learner:
            # DeepSpeed moves the states of these stages only: 1 has another optimizer in bfloat16, and 3
            # wants one of DeepSpeed's own.
            movable = (1, 2) if self.config.model.dtype == "float32" else (2,)
            for stage in (stage for stage in movable if learner.zero_stage in (None, stage)):
                for checkpointing in self._recompute():
                    yield PlanDraft(count, 1, ranks, stage, checkpointing, together=True, in_turn=True)

    def build(self, draft: PlanDraft) -> Plan:
        """The plan that a draft leads to.

        Raises:
            PlanError: it does not fit.
        """
        if self.gpus == 0:
            return self._on_cpus(draft)
        beside = self._beside(draft)
        alone = [self._alone(role) for role in self.scorers] if draft.alone else []
        taken = draft.ranks + sum(count for _, count, _ in alone)
        own_user = self.user and (draft.alone or not draft.ranks) and not draft.together
        engines = draft.engines
        if not draft.together:
            free = self.gpus - taken - own_user
            engines = engines or max(1, min(free // draft.parallel, self._episodes()))
            if engines * draft.parallel > free:
                raise PlanError(
                    f"{self.machines}: rollout.engines = {engines} on {draft.parallel} each, and "
                    f"{self.gpus - free} for the rest, are more than there are"
                )
        left = self._room(draft, beside)
        engine = self._engine(draft.parallel, left if draft.together else self.usable)
        contents: list[tuple[int, dict[Role, Need]]] = []
        shared: dict[Role, Need] = {"engine": engine} if draft.together else {}
        if not draft.together:
            contents += [(draft.parallel, {"engine": engine})] * engines
        for index in range(draft.ranks or (engines if draft.together else 0)):
            own = {role: need for role, need in beside.items() if self._is_here(role, index)}
            contents.append((1, shared | own))
        if own_user:
            contents.append((1, {"user": engine_need(self.user_shape, self.config, 1, USERS)}))
        contents += [(count, {role: need}) for role, count, need in alone]
        places = [
            Place(role, index, CPUS, _fraction(gpus, len(roles)), need)
            for index, (gpus, roles) in enumerate(contents)
            for role, need in roles.items()
        ]
        bundles = [{"CPU": CPUS * len(roles), "GPU": float(gpus)} for gpus, roles in contents]
        check_nodes(bundles, self.nodes, self.config.env.shards)
        counts = {role: sum(role in roles for _, roles in contents) for role in ("engine", "teacher")}
        if self.config.teacher.replicas > counts["teacher"] > 0:
            raise PlanError(
                f"teacher.replicas = {self.config.teacher.replicas}: the plan has room for "
                f"{counts['teacher']}, one next to each learner rank or one with GPUs of its own",
                progress=4,
            )
        settled = self._settled(replace(draft, engines=counts["engine"]), counts["teacher"], engine)
        return Plan(settled, tuple(bundles), tuple(places), self.gpus, self.gib, self.widest)

    def _room(self, draft: PlanDraft, beside: dict[Role, Need]) -> float:
        """What is left of a shared GPU for an engine (GiB). PlanError if not even the others fit."""
        if not draft.in_turn:
            room = self.usable - _total(beside)
            if room < 0:
                raise PlanError(f"{self.machines}: {_list(beside)} exceed {self.usable:.1f} usable GiB", 1)
            return room
        resident: dict[Role, Need] = {role: need for role, need in beside.items() if role == "user"}
        sleeping = (PROCESS + KEPT) * (len(beside) - len(resident))
        room = self.usable - sleeping - _total(resident)
        learning = _total({role: need for role, need in beside.items() if role in ("learner", "critic")})
        if max([learning, *(beside[role].total for role in self.scorers)]) > room:
            raise PlanError(
                f"{self.machines}: {_list(beside)} exceed {room:.1f} GiB, even one after another", 1
            )
        moved = sum(need.parts.get(part, 0.0) for need in beside.values() for part in ON_HOST)
        moved += engine_need(self.shape, self.config, 1).parts["weights"]
        for node in self.nodes:
            if moved * node.gpus > node.ram_gib:
                raise PlanError(
                    f"{self.machines}: in turn, {moved * node.gpus:.0f} GiB would wait in {node.ram_gib:.0f} "
                    "GiB of RAM",
                    progress=2,
                )
        return room

    def _engine(self, parallel: int, room: float) -> Need:
        """An engine with as much cache as it can use, or all of what the user gives it."""
        config, least = self.config, engine_need(self.shape, self.config, parallel)
        most = engine_need(self.shape, config, parallel, config.rollout.max_num_seqs).total
        given = config.rollout.gpu_memory_utilization * self.gib
        size = given or min(most, room)
        if not least.total <= size <= room + 1e-9:
            have = (
                f"rollout.gpu_memory_utilization = {given / self.gib:g} gives it" if given else "it may use"
            )
            raise PlanError(
                f"{self.machines}: an engine needs at least {least}; {have} {min(size, room):.1f} GiB",
                progress=2,
            )
        return Need({**least.parts, "KV cache": least.parts["KV cache"] + size - least.total})

    def _beside(self, draft: PlanDraft) -> dict[Role, Need]:
        """By role, what shares a GPU (or the RAM) with one rank, the rank included."""
        needs: dict[Role, Need] = {}
        if draft.ranks:
            own = (self.shape, self.config, draft.ranks, draft.stage, draft.checkpointing)
            needs["learner"] = learner_need(*own)
            if self.critic:
                needs["critic"] = learner_need(*own, self.shape.parameters)
        if not draft.alone:
            needs |= {role: self._scorer(role, 1) for role in self.scorers}
        if self.user and not draft.alone and (draft.ranks or draft.together):
            needs["user"] = engine_need(self.user_shape, self.config, 1, USERS)
        return needs

    def _is_here(self, role: Role, index: int) -> bool:
        """Whether the GPU of this number has the role: one user, and as many teachers as are wanted."""
        replicas = self.config.teacher.replicas
        return not (role == "user" and index) and not (role == "teacher" and 0 < replicas <= index)

    def _scorer(self, role: Role, gpus: int) -> Need:
        config = self.config
        averages = role == "teacher" and config.teacher.ema_decay > 0 and not config.averages_adapter
        return scorer_need(self.shape, config, averages, gpus)

    def _alone(self, role: Role) -> tuple[Role, int, Need]:
        """A scorer on as few GPUs of one node as hold it."""
        for count in _powers(self.widest):
            if (need := self._scorer(role, count)).total <= self.usable:
                return role, count, need
        raise PlanError(f"{self.machines}: the {role} needs {need} on each of {count}")

    def _parallel(self) -> int:
        """GPUs of an engine: the user's, or as few of one node as hold it with room for a cache."""
        asked = self.config.rollout.tensor_parallel
        counts = [asked] if asked else list(_powers(self.widest))
        needs = {count: engine_need(self.shape, self.config, count) for count in counts}
        fitting = [count for count in counts if needs[count].total <= self.usable and count <= self.widest]
        roomy = [count for count in fitting if needs[count].parts["weights"] <= WEIGHTS * self.usable]
        if not fitting:
            raise PlanError(
                f"{self.machines}: an engine on {counts[-1]} of one node needs {needs[counts[-1]]} on each"
            )
        return (roomy or fitting[-1:])[0]

    def _ranks(self, parallel: int) -> list[int]:
        """Numbers of ranks to try: the learner's share of the GPUs, then more, then fewer."""
        asked, engines = self.config.learner.ranks, self.config.rollout.engines
        if not self.learner or asked:
            return [asked * self.learner]
        most = max(1, self.gpus - parallel * max(1, engines))
        share = LEARNERS[self.config.prompt.preset]
        wished = min(most, max(1, min(int(share * self.gpus), self._episodes())))
        return [*range(wished, most + 1), *range(wished - 1, 0, -1)]

    def _stages(self, ranks: int = 1) -> list[tuple[int, bool]]:
        """ZeRO stages with checkpointing that the settings allow, fastest first."""
        learner = self.config.learner
        stages = [1, 2, 3][: 3 if ranks > 1 else 1] if learner.zero_stage is None else [learner.zero_stage]
        return list(product(stages, self._recompute()))

    def _recompute(self) -> list[bool]:
        own = self.config.learner.gradient_checkpointing
        return [False, True] if own is None else [own]

    def _episodes(self) -> int:
        """Engines, or ranks, that the episodes of a step keep busy."""
        rollout = self.config.rollout
        return max(1, rollout.episodes // EPISODES)

    def _check_cpus(self) -> None:
        if self.config.cluster.gpus == "required":
            raise PlanError(
                "cluster.gpus = required, and Ray sees no GPU: start Ray where there are GPUs, or set "
                "cluster.gpus=none to run on CPUs"
            )
        if (transport := self.config.weight_sync.transport) in ("nccl", "ipc"):
            raise PlanError(
                f"weight_sync.transport = {transport} needs GPUs, and none is used: set it to auto"
            )

    def _on_cpus(self, draft: PlanDraft) -> Plan:
        needs, config = self._beside(draft), self.config
        needs["engine"] = cpu_engine_need(self.shape, config)
        if self.user:
            needs["user"] = cpu_engine_need(self.user_shape, config)
        counts: dict[Role, int] = {"engine": draft.engines, "learner": draft.ranks}
        counts |= {"critic": draft.ranks * self.critic, "user": int(self.user)}
        counts |= dict.fromkeys(self.scorers, 1)
        if "teacher" in counts:
            counts["teacher"] = config.teacher.replicas or 1
        roles = [role for role, count in counts.items() for _ in range(count)]
        total, ram = sum(needs[role].total for role in roles), sum(node.ram_gib for node in self.nodes)
        if total > ram:
            names = ", ".join(dict.fromkeys(roles))
            raise PlanError(f"{names} need {total:.1f} GiB of RAM, and there are {ram:.1f}")
        large = ("engine", "learner", "user")
        places = [
            Place(role, index, 0.5 if role in large else 0.25, 0.0, needs[role])
            for index, role in enumerate(roles)
        ]
        bundles = [{"CPU": place.cpus} for place in places]
        check_nodes(bundles, self.nodes, self.config.env.shards)
        settled = self._settled(draft, counts.get("teacher", 0), needs["engine"])
        return Plan(settled, tuple(bundles), tuple(places), 0, 0.0)

    def _settled(self, draft: PlanDraft, teachers: int, engine: Need) -> Config:
        """The settings with what has been decided."""
        config, transport = self.config, self.config.weight_sync.transport
        if transport == "auto":
            transport = "object_store"
            if self.gpus > 0 and not config.learner.lora.rank:
                transport = transport if draft.together else "nccl"
        share = config.rollout.gpu_memory_utilization
        if not share:
            share = round(engine.total / self.gib, 4) if draft.together else USABLE
        rollout = replace(
            config.rollout,
            engines=draft.engines,
            tensor_parallel=draft.parallel,
            gpu_memory_utilization=share,
            max_staleness=0 if draft.in_turn else config.rollout.max_staleness,
        )
        learner = replace(
            config.learner,
            ranks=max(1, draft.ranks),
            zero_stage=draft.stage,
            gradient_checkpointing=draft.checkpointing,
        )
        return replace(
            config,
            rollout=rollout,
            learner=learner,
            teacher=replace(config.teacher, replicas=max(1, teachers)),
            weight_sync=replace(config.weight_sync, transport=transport),
            cluster=replace(config.cluster, sharing="in_turn" if draft.in_turn else "side_by_side"),
        )


def _fraction(gpus: int, actors: int) -> float:
    """What each of several actors gets of a GPU; Ray counts in 1/10,000."""
    return float(gpus) if actors == 1 else 10_000 // actors / 10_000


def _powers(most: int) -> Iterator[int]:
    count = 1
    while count <= max(1, most):
        yield count
        count *= 2


def _total(needs: dict[Role, Need]) -> float:
    return sum(need.total for need in needs.values())


def _list(needs: dict[Role, Need]) -> str:
    return ", ".join(f"the {role} {need}" for role, need in needs.items())
