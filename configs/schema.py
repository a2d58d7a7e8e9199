"""Every setting of Hindsight with its default, its meaning and its allowed range.

The sections that make up a method are in `configs.method`. `configs.load` merges YAML and `key=value` over
all of it, and `configs.check` reports every value out of range.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hindsight.configs.method import Credit, Critic, Distill, Feedback, Judge, Loss, Reweight, Teacher
from hindsight.configs.setting import setting


@dataclass(frozen=True)
class Model:
    path: str = setting(
        "smollm2-135m",
        "the embedded models smollm2-135m, small or nano; else a folder or hub name of a causal LM",
    )
    dtype: str = setting("bfloat16", "weights and activations", choices=("bfloat16", "float32"))
    max_length: int = setting(2048, "most tokens in one sequence, prompt and response together", low=64)


@dataclass(frozen=True)
class User:
    """The simulated customer that TauBench's agent talks to."""

    source: str = setting(
        "scripted",
        "who plays it: the task's script; a model at an endpoint; or a model that the run serves itself",
        choices=("scripted", "endpoint", "engine"),
    )
    url: str = setting("", "base address of an OpenAI-compatible endpoint")
    model: str = setting("", "its model; for engine a folder or hub name, empty is model.path")
    api_key_env: str = setting("OPENAI_API_KEY", "environment variable that holds its key")
    temperature: float = setting(0.0, "sampling temperature", low=0.0)
    timeout: float = setting(60.0, "seconds one answer may take", low=0.1)
    retries: int = setting(2, "further tries after a failed call", low=0)


@dataclass(frozen=True)
class Env:
    name: str = setting(
        "alfworld",
        "environment; module:Class is an EnvFamily of your own",
        choices=("alfworld", "webshop", "taubench", "appworld", "bfcl"),
        form="module:Class",
    )
    data: str | None = setting(
        None,
        "folder of official data; null takes what can be generated or comes with the packages "
        "(ALFWorld: else $ALFWORLD_DATA; AppWorld: else $APPWORLD_ROOT)",
    )
    kinds: list[str] = setting([], "task types to keep; empty keeps all")
    goals: str = setting(
        "synthetic", "WebShop's goals: made from products, or by people", choices=("synthetic", "human")
    )
    train_tasks: int = setting(600, "training tasks", low=1)
    eval_tasks: int = setting(120, "tasks of the fixed evaluation panel, drawn from unseen rooms", low=1)
    max_turns: int = setting(50, "turns per episode before it is truncated", low=1)
    seed: int = setting(0, "seed of generated tasks", low=0)
    shards: int = setting(1, "shard actors; each owns `slots` environment processes", low=1)
    slots: int = setting(16, "environment processes per shard = episodes at once per shard", low=1)
    step_timeout: float = setting(20.0, "seconds a step may take before its slot is killed", low=0.1)
    reset_timeout: float = setting(60.0, "seconds a reset may take before its slot is killed", low=0.1)
    memory_gib: float = setting(
        4.0,
        "memory of its own that a slot may hold: above it its next episode gets a fresh process, above twice "
        "that it is killed; 0 sets no bound",
        low=0.0,
    )
    user: User = field(default_factory=User)

    @property
    def at_once(self) -> int:
        """Episodes that run at the same time."""
        return self.shards * self.slots


@dataclass(frozen=True)
class Prompt:
    preset: str = setting(
        "history",
        "history: one growing chat, one training row per trajectory; window: one message per turn",
        choices=("history", "window"),
    )
    window: int = setting(2, "past (observation, action) pairs shown by the window preset", low=0)
    remind: bool = setting(
        False, "history: repeat the task below each observation, where the benchmark says it only once"
    )
    list_actions: bool = setting(True, "list the admissible actions in every observation")
    think: bool = setting(True, "ask for <think>…</think> before <action>…</action>")


@dataclass(frozen=True)
class Rollout:
    engines: int = setting(1, "vLLM engine actors", low=1)
    tensor_parallel: int = setting(1, "GPUs per engine", low=1)
    workers: int = setting(1, "actors that host episodes", low=1)
    num_groups: int = setting(8, "task groups per training step", low=1)
    group_size: int = setting(8, "trajectories per group", low=1)
    temperature: float = setting(1.0, "sampling temperature in training", low=0.01)
    max_tokens: int = setting(512, "most tokens per response", low=1)
    max_num_seqs: int = setting(64, "sequences an engine decodes at once", low=1)
    kv_cache_gib: float = setting(1.0, "KV cache of a CPU engine, GiB", low=0.1)
    gpu_memory_utilization: float = setting(
        0.85, "share of a GPU's memory that an engine may use", low=0.05, high=1.0
    )
    compile: bool = setting(False, "let vLLM compile the model: slower start, faster decoding")
    max_staleness: int = setting(0, "weight versions a trajectory may lag behind; 0 is synchronous", low=0)
    timeout: float = setting(
        3600.0, "seconds a group, a held-out episode or a demonstration may take to be played", low=1.0
    )
    retries: int = setting(2, "fresh starts of an episode after an infrastructure failure", low=0)
    request_timeout: float = setting(600.0, "seconds one generation may take", low=1.0)


@dataclass(frozen=True)
class Sft:
    demos: int = setting(0, "demonstrations to imitate before reinforcement; 0 skips the warm start", low=0)
    epochs: int = setting(1, "passes over the demonstrations", low=1)
    lr: float = setting(2e-4, "peak learning rate", low=0.0)
    batch_rows: int = setting(16, "sequences per update", low=1)
    noise: float = setting(
        0.1, "probability that a demonstration step is random, so that recovery is shown", low=0, high=1
    )
    observations: float = setting(
        0.0,
        "weight of predicting the observations too, by which a model of random weights learns to copy names",
        low=0,
        high=1,
    )
    hints: float = setting(
        0.25,
        "share of extra examples whose prompt holds hindsight, so that a small model reads it",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class Lora:
    """An adapter that is trained in the place of the weights, which stay as they are."""

    rank: int = setting(0, "rank of the adapter; 0 trains all weights", low=0, high=512)
    alpha: int = setting(64, "the adapter is multiplied by alpha / rank", low=1)
    dropout: float = setting(
        0.0,
        "of the adapter's input in imitation and distillation; the policy loss has none",
        low=0.0,
        high=0.9,
    )
    targets: list[str] = setting([], "names of the linear layers that get one; empty is all but the head")


@dataclass(frozen=True)
class Learner:
    ranks: int = setting(1, "DeepSpeed ranks, one actor and (with GPUs) one GPU each", low=1)
    zero_stage: int = setting(1, "ZeRO stage", low=0, high=3)
    lr: float = setting(1e-6, "peak learning rate", low=0.0)
    warmup_steps: int = setting(0, "steps of linear warm-up", low=0)
    schedule: str = setting(
        "constant", "after the warm-up; linear falls to 0 over the run", choices=("constant", "linear")
    )
    weight_decay: float = setting(0.01, "AdamW weight decay", low=0.0)
    max_grad_norm: float = setting(1.0, "global gradient norm is clipped to this", low=0.0)
    micro_batch_tokens: int = setting(8192, "token budget of a micro-batch, padding included", low=64)
    mini_batches: int = setting(
        1, "optimizer steps per training step; above 1 the old log-probs are recomputed first", low=1
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    timeout: float = setting(3600.0, "seconds one update may take", low=1.0)
    lora: Lora = field(default_factory=Lora)


@dataclass(frozen=True)
class WeightSync:
    transport: str = setting(
        "object_store", "how weights reach the engines", choices=("object_store", "nccl")
    )
    max_logprob_gap: float = setting(
        0.25, "largest mean |log-prob| gap of the canary between learner and engine", low=0.0
    )


@dataclass(frozen=True)
class Checkpoint:
    every: int = setting(10, "training steps between checkpoints; the last step always has one", low=1)
    keep: int = setting(2, "checkpoints kept", low=1)


@dataclass(frozen=True)
class Evaluate:
    episodes: int = setting(120, "held-out episodes per evaluation; more than the panel repeats it", low=1)
    cold_episodes: int = setting(
        120, "as many before the warm start, where a small model plays every episode to its last turn", low=1
    )
    every: int = setting(0, "training steps between evaluations; 0 evaluates only before and after", low=0)
    agent: str = setting(
        "student",
        "student: the model as it is; react: with a worked example before the task (ReAct); reflexion: also "
        "tries a failed task again, with lessons that the model drew from its failures (Reflexion)",
        choices=("student", "react", "reflexion"),
    )
    temperature: float = setting(0.4, "sampling temperature", low=0.0)
    trials: int = setting(3, "reflexion: most trials of a task", low=1)
    example_characters: int = setting(
        4000, "react, reflexion: most characters of what is observed in the worked example", low=200
    )


@dataclass(frozen=True)
class Cluster:
    address: str | None = setting(None, "Ray address; null starts a local Ray, auto joins the running one")
    threads: int = setting(
        0, "CPU threads of each engine, learner and teacher actor; 0 takes every core", low=0
    )
    share_gpu: bool = setting(False, "split one GPU between engine, learner and teacher")
    actor_logs: bool = setting(False, "print what the actors print; the dashboard has it anyway")
    dashboard: bool = setting(True, "start the Ray dashboard with a local Ray")
    dashboard_port: int = setting(8265, "its port", low=1, high=65535)
    start_timeout: float = setting(600.0, "seconds the actors may take to start", low=1.0)
    stall_timeout: float = setting(
        900.0,
        "seconds without progress before stacks are printed and the run stops; where a wait's own deadline "
        "(of rollout, learner, teacher or judge) is longer, that",
        low=1.0,
    )


@dataclass(frozen=True)
class Config:
    """One run."""

    out: str = setting("runs/default", "folder of everything the run writes")
    method: str = setting("", "the method whose settings lie below these: a file of configs/methods")
    steps: int = setting(20, "training steps of reinforcement", low=0)
    seed: int = setting(0, "seed of task order, sampling and training", low=0)
    resume: str = setting(
        "never", "auto goes on from the last checkpoint in `out`", choices=("never", "auto")
    )
    failure_budget: int = setting(64, "infrastructure failures before the run stops with a diagnosis", low=0)
    model: Model = field(default_factory=Model)
    env: Env = field(default_factory=Env)
    prompt: Prompt = field(default_factory=Prompt)
    rollout: Rollout = field(default_factory=Rollout)
    sft: Sft = field(default_factory=Sft)
    credit: Credit = field(default_factory=Credit)
    critic: Critic = field(default_factory=Critic)
    feedback: Feedback = field(default_factory=Feedback)
    judge: Judge = field(default_factory=Judge)
    reweight: Reweight = field(default_factory=Reweight)
    distill: Distill = field(default_factory=Distill)
    teacher: Teacher = field(default_factory=Teacher)
    loss: Loss = field(default_factory=Loss)
    learner: Learner = field(default_factory=Learner)
    weight_sync: WeightSync = field(default_factory=WeightSync)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def temperatures(self) -> dict[str, float]:
        """What divides the logits of those who score: as the student's in the loss that they serve."""
        distills = self.distill.weight > 0
        sampling = self.rollout.temperature
        return {"teacher": self.distill.temperature if distills else sampling, "reference": sampling}

    @property
    def averages_adapter(self) -> bool:
        """Whether the teacher's moving average is of an adapter: then the learner keeps it."""
        return self.learner.lora.rank > 0 and self.teacher.ema_decay > 0

    @property
    def broadcasts(self) -> bool:
        """Whether weights go to the engines by NCCL; an adapter never does, for vLLM loads it from a file."""
        return self.weight_sync.transport == "nccl" and not self.learner.lora.rank
