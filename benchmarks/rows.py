"""The rows of `make bench`: what is compared, by which command, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Where `make bench` installs what is compared with, such as TRL: only its commands import from there.
COMPARED = Path(__file__).resolve().parents[1] / ".bench" / "site-packages"
STEP = "benchmarks/step.yaml"
METHODS = (
    f"methods {STEP} grpo serl serl:signal.decay_steps=1 serl:rollout.max_staleness=1 --steps 3 --rounds 1"
)
HINTS = (  # a trained model, whose answers as the judge can be read; the first step of a run is not counted
    "methods alfworld hint_sd_full hero_reflection --steps 1 --rounds 1 env.max_turns=8 rollout.num_groups=1 "
    "rollout.group_size=4 model.max_length=2560 learner.micro_batch_tokens=2560 evaluate.episodes=1 "
    "evaluate.cold_episodes=0 checkpoint.every=100"
)
LEARNER = "learner --layers 8 --prompt 150 --longest 600 --budget 2048 --rounds 2"
QUICK_LEARNER = "learner --layers 1 --prompt 150 --longest 500 --budget 2048 --rounds 2"
ROLLOUT = "rollout --model smollm2-135m --turns 8 --episodes 16 --rounds 2"
SPANS = "smollm2-135m --dtype float32 --trajectories 1 --turns 20 --tokens 1000"
TWO_CORES = (
    "without a GPU, all processes share two cores; worker, shard and the engine's actor take 8 ms of them "
    "per turn (docs/reliability.md), and what else is lost has not been profiled"
)
DRIVER = "driver --episodes 16,96,1000 --steps 2 --turns 5"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    A command is a module of this folder and its arguments. Several rows may have the same: it runs once.
    """

    name: str
    command: str = ""  # "": nothing measures it
    ratio: str = ""  # the name that the command prints
    target: float | None = None
    less: bool = False  # a smaller figure is better
    quick: str = ""  # the command for `make bench-quick`, less than a minute long; "": left out of it
    why: str = ""  # what keeps it from the target, or from being measured

    def good(self, value: float) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return value <= self.target if self.less else value >= self.target

    @property
    def wanted(self) -> str:
        """The target as text."""
        return "" if self.target is None else f"{'≤' if self.less else '≥'} {self.target:g}"


ROWS = (
    Row("rollout ÷ raw vLLM, exact replay", ROLLOUT, "rollout ÷ raw vLLM", 0.97, why=TWO_CORES),
    *(
        Row(
            f"free-running ÷ lock-step, {turns} turns",
            f"rollout --model small --turns {turns} --episodes {episodes} --rounds 2",
            "free-running ÷ lock-step",
            target,
            why=TWO_CORES,
        )
        for turns, episodes, target in ((20, 32, 1.4), (50, 16, 2.0))
    ),
    Row(
        "teacher's spans ÷ every position",
        f"teacher {SPANS} --repeats 2",
        "every position ÷ teacher spans",
        5.0,
        quick="teacher small --dtype float32 --trajectories 1 --turns 6 --tokens 400",
    ),
    Row(
        "teacher's spans ÷ vLLM's prompt_logprobs",
        f"prompt_logprobs {SPANS} --rounds 2",
        "vLLM's prompt_logprobs ÷ teacher spans",
    ),
    Row(
        "share of the teacher's time that rollouts hide",
        f"hidden {STEP} --rounds 1",
        "teacher time hidden, by trajectory",
        0.8,
        why="most work comes last: failures are the longest episodes and end together at the limit of turns, "
        "and a group is scored only once two of its rewards differ (docs/performance.md)",
    ),
    Row("learner ÷ TRL's loss step", LEARNER, "trl/ours", 2.0),
    Row("learner ÷ a plain loop on padded rows", LEARNER, "padded/ours", quick=QUICK_LEARNER),
    Row("learner ÷ itself without packing and sharing", LEARNER, "rows/ours", quick=QUICK_LEARNER),
    Row(
        "learner as a share of the matmul peak",
        LEARNER,
        "ours/peak",
        0.55,
        why="attention and element-wise passes run below the rate of matmuls (docs/performance.md)",
    ),
    Row(
        "whole step ÷ TRL's GRPO, on a random model of 25M parameters",
        f"trl_step {STEP}",
        "whole step ÷ TRL",
        2.0,
    ),
    Row("asynchronous ÷ synchronous, time of a step", METHODS, "step of serl:rollout.max_staleness=1 ÷ serl"),
    Row(
        "SERL ÷ GRPO, time of a step",
        METHODS,
        "step of serl ÷ grpo",
        1.1,
        less=True,
        why="without GPUs the teacher takes the cores that rollouts and learner use",
    ),
    Row(
        "SERL after its decay ÷ GRPO, time of a step",
        METHODS,
        "step of serl:signal.decay_steps=1 ÷ grpo",
        1.01,
        less=True,
    ),
    Row(
        "hints for every turn ÷ HINT-SD, time of a step",
        HINTS,
        "step of hero_reflection ÷ hint_sd_full",
        2.26,
        why="rollouts and update, alike in both, are most of so short a step; what differs, writing and "
        "scoring hints, took 50 s for every turn and 9 s for HINT-SD's",
    ),
    Row(
        "time of a weight sync ÷ a copy of the bytes",
        "publish",
        "weight sync ÷ copy",
        3.0,
        less=True,
        why="sums of the tensors are bound by the processor where a copy is bound by memory",
    ),
    *(
        Row(
            f"groups/s of the driver, {count} episodes in flight ÷ what its engines allow",
            DRIVER,
            f"driver, {count}",
        )
        for count in (16, 96, 1000)
    ),
    Row("cold start, seconds to the first action", "start", "cold start, seconds to the first action"),
    Row(
        "warm start, seconds to the first action",
        "start",
        "warm start, seconds to the first action",
        20.0,
        less=True,
        why="on two cores, the driver imports for 10 s, and then five processes do at once; a cold start "
        "takes no longer, so it is not compilation",
    ),
    *(
        Row(
            f"{name}'s steps/s ÷ upstream's",
            f"environments {name.lower()}",
            f"environment steps/s ÷ upstream, {name.lower()}",
            why=why,
        )
        for name, why in (
            ("ALFWorld", "upstream translates a game at every reset, and computes each state anew"),
            (
                "AppWorld",
                "an episode forks a server and a sandbox for the agent's code; upstream's runs unprotected",
            ),
            (
                "BFCL",
                "each step also hashes the state of all backends, and each turn is checked when it ends",
            ),
            ("TauBench", "nearly all of both is tau2's own orchestrator and evaluator"),
        )
    ),
    Row("WebShop's steps/s ÷ upstream's", why="upstream needs Java, and is in no package registry"),
    Row("Search-QA's steps/s ÷ upstream's", why="there is no upstream environment, only a search engine"),
)
