"""What a method is made of: credit, feedback, the teacher and its signal, the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from hindsight.configs.setting import setting

if TYPE_CHECKING:
    from hindsight.configs.schema import Config


class Section:
    """A section of the configuration that the entry it names may extend."""

    def problems(self, config: Config) -> Iterator[str]:
        """What of `config` cannot work with these settings; a line each."""
        yield from ()

    @property
    def summary(self) -> str:
        """These settings in a few words, for the table of methods."""
        return ""


Statistics = Literal["turns", "trajectories"]
Normalization = Literal["std", "none"]
Combination = Literal["all", "first"]
ScoredTokens = Literal["action", "response"]


@dataclass(frozen=True)
class Credit(Section):
    """Credit assignment: the advantage of every sampled token. An estimator may extend it."""

    critic: ClassVar[bool] = False  # whether a critic's values take the place of sibling rollouts

    advantage: str = setting("grpo", "advantage estimator: grpo, rloo, gigpo, hgpo, gae or your own")
    statistics: Statistics = setting(
        "turns", "grpo, rloo, gigpo, hgpo: what the mean and std of a group are taken over"
    )
    normalize: Normalization = setting(
        "std", "grpo, gigpo, hgpo: divide advantages by the std of the group, or not"
    )
    success_reward: float = setting(10.0, "return of a successful trajectory", low=0.0)
    malformed_penalty: float = setting(0.1, "deducted from the return of a malformed turn", low=0.0)
    inadmissible_penalty: float = setting(
        0.0, "deducted from the return of a turn whose action the environment does not list", low=0.0
    )

    @property
    def summary(self) -> str:
        return f"{self.advantage}, over {self.statistics}{self.unscaled}"

    @property
    def unscaled(self) -> str:
        """The end of the summary if nothing is divided by a std."""
        return ", without std" if self.normalize == "none" else ""


@dataclass(frozen=True)
class Feedback(Section):
    """What the teacher is shown. `sources`, `combine` and `granularity` are independent choices.

    A sibling is another rollout of the same task. A flag below is true for a section if it is true for any
    source the section names.
    """

    judged: ClassVar[bool] = False  # whether a model writes the hints
    pools: ClassVar[bool] = False  # whether granularity=anchor can merge the hints of several turns
    needs_solution: ClassVar[bool] = False  # whether the task's reference solution is needed
    shows_sibling: ClassVar[bool] = False  # whether a successful sibling is a hint
    sees_sibling: ClassVar[bool] = False  # whether its judge reads that sibling in place of the teacher

    sources: list[str] = setting(
        [],
        "sources of hints, in their order: sibling (a successful one), immediate, next_observation, future, "
        "reference, skills, judge, reflect, target, extracted_skills, guide or your own",
    )
    combine: Combination = setting(
        "all",
        "all: combine every source, and give no hint for a turn if one is missing; first: use the first "
        "source that has a hint",
    )
    granularity: Literal["step", "anchor"] = setting(
        "step", "one hint per turn, or one for all turns of the group in the same state"
    )
    rendering: Literal["responses", "pairs"] = setting(
        "responses", "show a trajectory as responses without reasoning, or as observation-action pairs"
    )
    placement: Literal["section", "message"] = setting(
        "section", "put the hint into the last user message, or into a message of its own"
    )
    control: Literal["none", "other_task", "no_hindsight", "random_turns", "shuffled"] = setting(
        "none",
        "control arm: hints of another task; none at all; at random turns; weights permuted within a turn",
    )
    max_tokens: int = setting(512, "longest hint; a longer one is shortened in its middle", low=8)

    @property
    def on(self) -> bool:
        """Whether any turn may get a hint."""
        return bool(self.sources)

    @property
    def informs_judge(self) -> bool:
        """Whether a judge is shown the successful sibling, where there is one, and the teacher is not."""
        return self.sees_sibling and self.shows_sibling and self.combine == "all"

    @property
    def summary(self) -> str:
        names = ("successful sibling" if name == "sibling" else name for name in self.sources)
        shown = {"all": " and ", "first": " or "}[self.combine].join(names).replace("_", " ")
        return f"{shown}, per {self.granularity}" if shown else "–"


@dataclass(frozen=True)
class Judge:
    """The model that writes hints (feedback.sources judge, reflect, target, extracted_skills or guide), and
    Reflexion's lessons.

    Lessons always come from the run's own engines.
    """

    source: Literal["engine", "endpoint"] = setting(
        "engine", "the current policy on the run's engines, or an OpenAI-compatible endpoint"
    )
    url: str = setting("", "base URL of the endpoint, including /v1")
    model: str = setting("", "the endpoint's name for the model")
    api_key_env: str = setting("OPENAI_API_KEY", "environment variable that holds the endpoint's key")
    temperature: float = setting(0.0, "sampling temperature", low=0.0)
    top_p: float = setting(1.0, "nucleus sampling", low=0.01, high=1.0)
    max_tokens: int = setting(512, "longest answer; reflect allows 100 tokens per turn if more", low=1)
    characters: int = setting(
        12_000, "longest excerpt of a trajectory in a question; shorter if the context is too small", low=200
    )
    timeout: float = setting(60.0, "timeout of one attempt (s)", low=0.1)
    concurrency: int = setting(16, "questions in flight", low=1)
    budget: int = setting(0, "questions per run, resumes included; 0 sets no limit", low=0)


@dataclass(frozen=True)
class Signal(Section):
    """What the teacher's log-probs do to the update. A teacher signal may extend it."""

    temperature: ClassVar[float | None] = None  # of the log-probs compared; None: the sampling temperature

    name: str = setting(
        "none",
        "teacher signal: none, reweight, distill, shift, gate, sampled_kl, belief, turn_gap or your own",
    )
    tokens: ScoredTokens = setting(
        "action", "tokens of a turn that the teacher scores: the action, or all that was sampled"
    )

    @property
    def loss_weight(self) -> float:
        """Weight of the signal's own loss; 0: it has none."""
        return 0.0

    @property
    def by_token(self) -> bool:
        """Whether it matters to which of a turn's tokens a log-ratio belongs."""
        return True

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.name != "none"

    @property
    def summary(self) -> str:
        return self.name

    def problems(self, config: Config) -> Iterator[str]:
        if self.asks_teacher and not config.feedback.on:
            yield (
                f"signal.name = {self.name} needs hints to show the teacher: set feedback.sources, or "
                "signal.name=none"
            )


@dataclass(frozen=True)
class Teacher:
    """The copy of the student that scores its tokens."""

    sync_every: int = setting(10, "steps between syncs from the student; 0 keeps the first weights", low=0)
    ema_decay: float = setting(
        0.0,
        "decay of the teacher's moving average of the student's weights (of its adapter, if any), applied at "
        "each sync; 0 copies the student",
        low=0.0,
        high=0.9999,
    )
    replicas: int = setting(0, "teacher actors; 0: the plan decides", low=0)
    batch_tokens: int = setting(8192, "token budget of one forward pass", low=64)
    timeout: float = setting(600.0, "timeout of one scoring call (s)", low=1.0)


@dataclass(frozen=True)
class Loss:
    """The policy loss."""

    policy: float = setting(1.0, "weight of the policy-gradient loss; 0 turns it off", low=0.0)
    clip_low: float = setting(0.2, "PPO clip below 1", low=0.0, high=1.0)
    clip_high: float = setting(0.2, "PPO clip above 1", low=0.0)
    dual_clip: float = setting(3.0, "bound of the loss on negative advantages; 0 turns it off", low=0.0)
    entropy: float = setting(0.001, "coefficient of the entropy bonus", low=0.0)
    tis_cap: float = setting(
        2.0, "cap of the importance ratio between learner and engine; 0 turns it off", low=0.0
    )
    kl: float = setting(0.0, "coefficient of the KL penalty to the reference policy (k3)", low=0.0)
    aggregation: Literal["token-mean", "sequence-mean", "constant"] = setting(
        "token-mean", "mean over tokens; over sequences of token means; over sequences of sums / constant"
    )
    constant: float = setting(512.0, "tokens per sequence with aggregation=constant (Dr.GRPO)", low=1.0)
