"""What a method is made of: credit, feedback, the teacher's weights and what its signal does, the loss."""

from __future__ import annotations

from dataclasses import dataclass

from hindsight.configs.setting import setting


@dataclass(frozen=True)
class Credit:
    advantage: str = setting(
        "grpo",
        "advantage estimator: siblings compared in one way or another, or gae with a critic (PPO)",
        choices=("grpo", "rloo", "gigpo", "hgpo", "gae"),
    )
    statistics: str = setting(
        "turns",
        "mean and std of a group over turn samples or trajectories",
        choices=("turns", "trajectories"),
    )
    normalize: str = setting(
        "std", "divide differences by the std (not for rloo); none is Dr.GRPO", choices=("std", "none")
    )
    success_reward: float = setting(10.0, "return of a successful trajectory", low=0.0)
    malformed_penalty: float = setting(0.1, "taken off the return of a malformed turn", low=0.0)
    inadmissible_penalty: float = setting(
        0.0,
        "taken off the return of a turn whose action is not among those that the environment lists",
        low=0.0,
    )
    discount: float = setting(0.95, "γ of the returns that gigpo and hgpo compare", low=0.0, high=1.0)
    similarity: float = setting(
        1.0,
        "gigpo, hgpo: 1 takes equal states as the same, less those of that difflib ratio",
        low=0.0,
        high=1.0,
    )
    step_weight: float = setting(1.0, "gigpo: ω of the advantage within an anchor", low=0.0)
    history: int = setting(2, "hgpo: K, most states before the current one that peers share", low=0)
    history_alpha: float = setting(1.0, "hgpo: α of the weights (k + history_offset)^α", low=0.0)
    history_offset: int = setting(2, "hgpo: 2 as in the authors' code, 1 as in their paper", low=1)
    join_group: bool = setting(False, "hgpo: grpo's advantage is one more term, of weight 1")
    step: str = setting("token", "gae: a step is a sampled token, or a turn", choices=("token", "turn"))
    gamma: float = setting(1.0, "gae: γ, what a later reward is worth one step earlier", low=0.0, high=1.0)
    gae_lambda: float = setting(
        1.0, "gae: λ, from the critic's next value (0) to the rewards that came (1)", low=0.0, high=1.0
    )
    whiten: bool = setting(True, "gae: advantages less their mean, over their std, of the batch's tokens")

    @property
    def critic(self) -> bool:
        """Whether a critic's values take the place of siblings."""
        return self.advantage == "gae"


@dataclass(frozen=True)
class Critic:
    """PPO's critic (credit.advantage = gae). What it does not set it has from the learner."""

    lr: float = setting(1e-5, "peak learning rate", low=0.0)
    clip: float = setting(
        0.5, "how far a value may move in one training step, in units of the return; 0 sets no bound", low=0.0
    )


@dataclass(frozen=True)
class Feedback:
    """What the teacher is shown. `source`, `success` and `granularity` are three independent choices."""

    source: str = setting(
        "immediate",
        "what the environment returned to the action; the whole next observation; the later turns; the "
        "reference solution (OPSD); a judge's words on the trajectory (SERL); its diagnosis of each turn "
        "(HERO); its corrections of the turns that made it fail (HINT-SD)",
        choices=(
            "none",
            "immediate",
            "next_observation",
            "future",
            "reference",
            "judge",
            "reflect",
            "target",
        ),
    )
    sibling: str = setting(
        "none",
        "what a successful sibling does: nothing; only: it is all that is shown (with source=none); or: it "
        "replaces the source where there is one; and: both are shown, a turn that lacks one has no context",
        choices=("none", "only", "or", "and"),
    )
    granularity: str = setting(
        "step",
        "step: from the turn itself; anchor: one text for all turns of the group in the same state",
        choices=("step", "anchor"),
    )
    similarity: float = setting(
        1.0,
        "anchor: states are the same where their keys are this much alike (difflib); 1 asks for equality",
        low=0.0,
        high=1.0,
    )
    anchor_feedback: bool = setting(
        False, "anchor: also show the feedback of each action's best and worst try (not for source=immediate)"
    )
    rendering: str = setting(
        "responses",
        "a trajectory as numbered responses without their reasoning, or as pairs of observation and action",
        choices=("responses", "pairs"),
    )
    observation: bool = setting(
        True, "reflect: show the next observation above the diagnosis; false is HERO's ablation"
    )
    targets: int = setting(
        1, "target: most steps of a failed trajectory that get a correction", low=1, high=3
    )
    placement: str = setting(
        "section",
        "section: inside the last user message, with a closing line; message: one more user message",
        choices=("section", "message"),
    )
    max_tokens: int = setting(
        512, "longest hindsight section; a longer one is shortened in its middle", low=8
    )

    @property
    def on(self) -> bool:
        """Whether any turn may get hindsight."""
        return self.source != "none" or self.sibling != "none"

    @property
    def judged(self) -> bool:
        """Whether a model writes it."""
        return self.source in ("judge", "reflect", "target")


@dataclass(frozen=True)
class Judge:
    """The model that writes feedback (feedback.source judge, reflect or target).

    Reflexion's lessons (evaluate.agent) are always the engine's, with this temperature, top_p, max_tokens,
    characters and retries.
    """

    source: str = setting(
        "engine",
        "engine: the current policy on the run's engines; endpoint: any OpenAI-compatible one",
        choices=("engine", "endpoint"),
    )
    url: str = setting("", "base address of the endpoint, with its /v1")
    model: str = setting("", "the endpoint's name of the model")
    api_key_env: str = setting("OPENAI_API_KEY", "environment variable that holds the endpoint's key")
    temperature: float = setting(0.0, "sampling temperature", low=0.0)
    top_p: float = setting(1.0, "share of the probability that is sampled from", low=0.01, high=1.0)
    max_tokens: int = setting(
        512,
        "most tokens of an answer; reflect: 100 a turn where that is more; engine: fewer in a small context",
        low=1,
    )
    characters: int = setting(
        12_000,
        "most characters shown of a trajectory: target keeps the last, the others shorten each turn; "
        "an engine is shown fewer, until its answer fits beside them or has a third of model.max_length",
        low=200,
    )
    timeout: float = setting(60.0, "seconds one try may take", low=0.1)
    retries: int = setting(2, "further tries after a failed one", low=0)
    concurrency: int = setting(16, "questions asked at once", low=1)
    budget: int = setting(
        0, "questions per run, answers kept from before it was resumed included; 0 sets no bound", low=0
    )


@dataclass(frozen=True)
class Reweight:
    strength: float = setting(
        0.5, "λ₀: weight of the teacher's signal at step 0; 0 is plain GRPO", low=0.0, high=1.0
    )
    decay_steps: int = setting(50, "K: λ falls linearly to 0 over so many steps; 0 keeps it constant", low=0)
    clip: float = setting(0.2, "ε: token weights stay within [1−ε, 1+ε]", low=0.0, high=1.0)
    tokens: str = setting(
        "action",
        "which tokens of a turn the teacher weighs: its executable action (SERL) or all it sampled (RLSD)",
        choices=("action", "response"),
    )


@dataclass(frozen=True)
class Distill:
    weight: float = setting(
        0.0, "of the loss that pulls the student to the teacher, on whole turns that have hindsight", low=0.0
    )
    divergence: str = setting(
        "jsd",
        "distance between the two next-token distributions; sampled looks at the sampled tokens alone",
        choices=("jsd", "reverse", "forward", "sampled"),
    )
    beta: float = setting(0.5, "weight of the teacher in the mixture of jsd", low=0.01, high=0.99)
    temperature: float = setting(1.0, "divides the logits of both distributions", low=0.01)
    top_k: int = setting(
        100, "the student's likeliest tokens that are compared, beside one bucket for the rest", low=1
    )
    tis_cap: float = setting(
        2.0,
        "cap of the ratio of the current policy to the one at the step's start; 0 switches it off",
        low=0.0,
    )


@dataclass(frozen=True)
class Teacher:
    sync_every: int = setting(
        10, "steps between refreshes from the student; 0 keeps the first weights", low=0
    )
    ema_decay: float = setting(
        0.0,
        "decay of the moving average of the student (of its adapter, if any) at each sync; 0 copies it",
        low=0.0,
        high=0.9999,
    )
    batch_tokens: int = setting(8192, "token budget of one scoring forward", low=64)
    timeout: float = setting(600.0, "seconds one scoring call may take", low=1.0)


@dataclass(frozen=True)
class Loss:
    policy: float = setting(1.0, "weight of the policy-gradient loss; 0 leaves it out", low=0.0)
    clip_low: float = setting(0.2, "PPO clip below 1", low=0.0, high=1.0)
    clip_high: float = setting(0.2, "PPO clip above 1", low=0.0)
    dual_clip: float = setting(3.0, "bound of the loss on negative advantages; 0 switches it off", low=0.0)
    entropy: float = setting(0.001, "coefficient of the entropy bonus", low=0.0)
    tis_cap: float = setting(2.0, "cap of the rollout/learner importance weight; 0 switches it off", low=0.0)
    kl: float = setting(0.0, "coefficient of the KL divergence from the reference policy", low=0.0)
    kl_estimator: str = setting("k3", "its estimate on sampled tokens", choices=("k1", "k2", "k3"))
    aggregation: str = setting(
        "token-mean",
        "mean over tokens; mean over rows of their token means; mean over rows of token sums / constant",
        choices=("token-mean", "sequence-mean", "constant"),
    )
    constant: float = setting(
        512.0, "tokens that aggregation = constant takes every row to have (Dr.GRPO)", low=1.0
    )
