"""Every setting of Hindsight with its default, meaning and range.

The sections of a method are in `configs.method`. `configs.load` merges recipes and `key=value` overrides over
all of it, and `configs.check` reports every problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hindsight.configs.method import Credit, Feedback, Judge, Loss, Section, Signal, Teacher
from hindsight.configs.setting import setting


@dataclass(frozen=True)
class Model:
    """The student."""

    path: str = setting("smollm2-135m", "embedded model (smollm2-135m, small, nano), folder or hub name")
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "bfloat16", "type of weights and activations; auto: float32 on CPUs that only emulate bfloat16"
    )
    max_length: int = setting(2048, "longest sequence in tokens, prompt and response together", low=64)


@dataclass(frozen=True)
class Env(Section):
    """The environment and its tasks. An environment may extend it."""

    name: str = setting(
        "alfworld", "environment: alfworld, webshop, taubench, appworld, bfcl, searchqa or your own"
    )
    data: str | None = setting(
        None,
        "folder of official data; null uses generated or packaged tasks "
        "(ALFWorld: or $ALFWORLD_DATA; AppWorld: or $APPWORLD_ROOT)",
        of_entry="env",
    )
    kinds: list[str] = setting([], "task types to keep; empty keeps all", of_entry="env")
    train_tasks: int = setting(600, "training tasks", low=1)
    eval_tasks: int = setting(120, "tasks of the panel `evaluation`", low=1)
    max_turns: int = setting(50, "turns per episode before it is truncated", low=1)
    seed: int = setting(0, "seed of generated tasks", low=0)
    shards: int = setting(1, "shard actors; each owns `slots` environment processes", low=1)
    slots: int = setting(16, "environment processes per shard: episodes that run at once", low=1)
    step_timeout: float = setting(20.0, "timeout of a step, after which its process is killed (s)", low=0.1)
    reset_timeout: float = setting(60.0, "timeout of a reset, after which its process is killed (s)", low=0.1)
    memory_gib: float = setting(
        4.0,
        "private memory of an environment process: above it the process is replaced after the episode, above "
        "twice that it is killed; 0 sets no limit",
        low=0.0,
    )

    @property
    def at_once(self) -> int:
        """Episodes that run at the same time."""
        return self.shards * self.slots

    @property
    def served_model(self) -> str | None:
        """A model that the run must serve for the environment (a simulated user, say); "": the student's."""
        return None

    @property
    def caveats(self) -> tuple[str, ...]:
        """What these settings give up that a user has to know; said at the start and at the end of a run."""
        return ()

    def with_endpoint(self, url: str, model: str, api_key_env: str) -> Env:
        """These settings with the address where `served_model` is served."""
        raise NotImplementedError(f"{self.name} asks for no served model")


@dataclass(frozen=True)
class Prompt:
    """How the student is shown the episode."""

    preset: Literal["history", "window"] = setting(
        "history", "one growing chat (one sequence per trajectory), or one message per turn"
    )
    window: int = setting(2, "window: past (observation, action) pairs that are shown", low=0)
    remind: bool = setting(False, "history: repeat the task below each observation")
    list_actions: bool = setting(True, "list the admissible actions in every observation")
    think: bool = setting(True, "ask for <think>…</think> before the action")


@dataclass(frozen=True)
class Rollout:
    """How episodes are sampled."""

    engines: int = setting(0, "vLLM engine actors; 0: the plan decides", low=0)
    tensor_parallel: int = setting(0, "GPUs per engine; 0: as few as hold the model", low=0)
    num_groups: int = setting(8, "task groups per training step", low=1)
    group_size: int = setting(8, "trajectories per group", low=1)
    temperature: float = setting(1.0, "sampling temperature in training", low=0.01)
    max_tokens: int = setting(512, "longest response", low=1)
    max_num_seqs: int = setting(64, "sequences that an engine decodes at once", low=1)
    kv_cache_gib: float = setting(1.0, "KV cache of a CPU engine (GiB)", low=0.1)
    gpu_memory_utilization: float = setting(
        0.0, "share of a GPU's memory that an engine may use; 0: the plan decides", low=0.0, high=0.98
    )
    compile: bool = setting(False, "let vLLM compile the model: slower start, faster decoding")
    max_staleness: int = setting(0, "weight versions that a trajectory may lag; 0 is synchronous", low=0)
    timeout: float = setting(
        3600.0,
        "timeout of an episode or a demonstration; in training its wait for a slot counts (s)",
        low=1.0,
    )
    retries: int = setting(2, "restarts of an episode after an infrastructure failure", low=0)
    request_timeout: float = setting(600.0, "timeout of one generation (s)", low=1.0)

    @property
    def episodes(self) -> int:
        """Episodes per training step."""
        return self.num_groups * self.group_size


@dataclass(frozen=True)
class Sft:
    """The supervised warm start on demonstrations."""

    demos: int = setting(0, "demonstrations; 0 skips the warm start", low=0)
    epochs: int = setting(1, "passes over the demonstrations", low=1)
    lr: float = setting(2e-4, "peak learning rate", low=0.0)
    batch_rows: int = setting(16, "sequences per update", low=1)
    noise: float = setting(
        0.1, "probability that a demonstrated step is random, to show recovery", low=0.0, high=1.0
    )
    hints: float = setting(
        0.0, "fraction of additional examples that include a hint in the prompt", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter that is trained while the model's own weights stay frozen."""

    rank: int = setting(0, "rank of the adapter; 0 trains all weights", low=0, high=512)
    alpha: int = setting(64, "the adapter is scaled by alpha / rank", low=1)
    dropout: float = setting(0.0, "dropout of the adapter's input in SFT and distillation", low=0.0, high=0.9)
    targets: list[str] = setting([], "linear layers to adapt; empty adapts all but the head")


@dataclass(frozen=True)
class Learner:
    """DeepSpeed training."""

    ranks: int = setting(
        0, "DeepSpeed ranks: one actor and (with GPUs) one GPU each; 0: the plan decides", low=0
    )
    zero_stage: int | None = setting(None, "ZeRO stage; null: the lowest that fits", low=0, high=3)
    lr: float = setting(1e-6, "peak learning rate", low=0.0)
    warmup_steps: int = setting(0, "steps of linear warm-up", low=0)
    schedule: Literal["constant", "linear"] = setting("constant", "after the warm-up; linear falls to 0")
    weight_decay: float = setting(0.01, "AdamW weight decay", low=0.0)
    max_grad_norm: float = setting(1.0, "the global gradient norm is clipped to this", low=0.0)
    micro_batch_tokens: int = setting(8192, "tokens that a micro-batch computes at most", low=64)
    mini_batches: int = setting(
        1, "optimizer steps per training step; old log-probs of the second to the last come first", low=1
    )
    gradient_checkpointing: bool | None = setting(
        None, "recompute activations to save memory; null: if they would not fit"
    )
    timeout: float = setting(3600.0, "timeout of one update (s)", low=1.0)
    lora: Lora = field(default_factory=Lora)


@dataclass(frozen=True)
class WeightSync:
    """How engines get new weights."""

    transport: Literal["auto", "object_store", "nccl", "ipc"] = setting(
        "auto",
        "how weights reach the engines; auto: nccl from GPU to GPU, else object_store (shared memory); ipc: "
        "CUDA IPC within a GPU",
    )
    max_logprob_gap: float = setting(
        0.25, "largest mean |log-prob gap| between learner and engine on the canary prompt (nats)", low=0.0
    )


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoints, from which a run resumes."""

    every: int = setting(
        10, "training steps between checkpoints; one is also saved every half hour and last", low=1
    )
    keep: int = setting(2, "checkpoints to keep", low=1)


@dataclass(frozen=True)
class Evaluate:
    """Evaluation on panels of tasks."""

    panels: list[str] = setting(
        ["evaluation"],
        "panels of tasks: evaluation (env.eval_tasks of them, drawn by env.seed), the environment's own, or "
        "training (not held out)",
        of_entry="env",
    )
    episodes: int = setting(120, "episodes per panel; tasks repeat if there are fewer", low=1)
    cold_episodes: int = setting(120, "episodes on the first panel before the warm start; 0: none", low=0)
    every: int = setting(0, "training steps between evaluations; 0: only before and after", low=0)
    agent: Literal["student", "react", "reflexion"] = setting(
        "student", "the model alone; with a worked example (ReAct); with lessons from failures (Reflexion)"
    )
    temperature: float = setting(0.4, "sampling temperature", low=0.0)
    trials: int = setting(3, "reflexion: attempts at a task", low=1)
    example_characters: int = setting(
        4000, "react, reflexion: longest excerpt of observations in the worked example", low=200
    )

    @property
    def attempts(self) -> int:
        """Trials of a task, at most."""
        return self.trials if self.agent == "reflexion" else 1


@dataclass(frozen=True)
class Tracking(Section):
    """Where metrics go in addition to metrics.jsonl. A tracker may extend it."""

    names: list[str] = setting(
        ["tensorboard", "ray"], "trackers: tensorboard, ray, wandb, mlflow, trackio or your own"
    )


@dataclass(frozen=True)
class Cluster:
    """Ray and its resources."""

    threads: int = setting(0, "CPU threads of each engine, learner and teacher actor; 0: every core", low=0)
    gpus: Literal["auto", "required", "none"] = setting(
        "auto", "use the GPUs that there are; refuse to run without; or use none"
    )
    sharing: Literal["auto", "side_by_side", "in_turn"] = setting(
        "auto", "how engine, learner and scorers share a GPU; auto: in turn if they do not fit side by side"
    )
    dashboard_port: int = setting(8265, "port of a local Ray's dashboard; 0 starts none", low=0, high=65535)
    start_timeout: float = setting(600.0, "timeout for starting the actors (s)", low=1.0)
    stall_timeout: float = setting(
        900.0, "time without progress after which the run stops; longer timeouts extend it (s)", low=1.0
    )


@dataclass(frozen=True)
class Config:
    """One run."""

    out: str = setting("runs/default", "output folder of the run")
    method: str = setting("", "method preset (a name or a YAML file); the recipe's settings override it")
    steps: int = setting(20, "training steps", low=0)
    seed: int = setting(0, "seed of task order, sampling and training", low=0)
    resume: Literal["never", "auto"] = setting("never", "auto resumes from the last checkpoint in `out`")
    failure_budget: float = setting(
        0.2,
        "share of the episodes of the last 20 steps that may fail before the run stops",
        low=0.0,
        high=1.0,
    )
    model: Model = field(default_factory=Model)
    env: Env = field(default_factory=Env)
    prompt: Prompt = field(default_factory=Prompt)
    rollout: Rollout = field(default_factory=Rollout)
    sft: Sft = field(default_factory=Sft)
    credit: Credit = field(default_factory=Credit)
    feedback: Feedback = field(default_factory=Feedback)
    judge: Judge = field(default_factory=Judge)
    signal: Signal = field(default_factory=Signal)
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    learner: Learner = field(default_factory=Learner)
    weight_sync: WeightSync = field(default_factory=WeightSync)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    tracker: Tracking = field(default_factory=Tracking)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def needs_teacher(self) -> bool:
        """Whether any step asks a teacher."""
        return self.steps > 0 and self.feedback.on and self.signal.asks_teacher

    @property
    def needs_reference(self) -> bool:
        """Whether any step asks the reference policy."""
        return self.steps > 0 and self.loss.kl > 0

    @property
    def needs_critic(self) -> bool:
        """Whether any step asks a critic."""
        return self.steps > 0 and self.credit.critic

    @property
    def temperatures(self) -> dict[str, float]:
        """What divides the logits of each scorer: as the student's logits in the loss that it serves."""
        sampling = self.rollout.temperature
        return {"teacher": self.signal.temperature or sampling, "reference": sampling}

    @property
    def averages_adapter(self) -> bool:
        """Whether the teacher's moving average is of an adapter: then the learner keeps it."""
        return self.learner.lora.rank > 0 and self.teacher.ema_decay > 0

    @property
    def broadcasts(self) -> bool:
        """Whether weights go from GPU to GPU. Adapters never do: vLLM loads them from a file."""
        return self.weight_sync.transport in ("nccl", "ipc") and not self.learner.lora.rank
