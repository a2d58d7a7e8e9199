"""What a run costs: seconds of a step by phase, then hours and GPU-hours. A model: nothing runs.

The plan says how many engines, ranks and scorers there are, the recipe what a step asks for, and `Figures`
how fast a GPU is and how large an episode. docs/cost.md says what is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hindsight.cluster.memory import Shape
from hindsight.cluster.plan import Plan, Role
from hindsight.cluster.rates import Figures
from hindsight.learner.signals import make_signal

CHARACTERS = 4  # of a token


@dataclass(frozen=True)
class Steps:
    """The training steps of a run that cost the same; figures are those of one, in the steady state."""

    count: int
    taught: bool  # whether the teacher is asked
    phases: Mapping[str, float]  # seconds that each phase works; some overlap
    seconds: float
    bound: str  # what the step waits for
    engines: float  # share of the time in which the engines' GPUs compute
    ranks: float  # of the ranks' GPUs, with the scorers on them

    @property
    def name(self) -> str:
        """What they are."""
        return f"{self.count} steps {'with the' if self.taught else 'without a'} teacher"


@dataclass(frozen=True)
class Budget:
    """One run of one seed."""

    gpus: int
    steps: tuple[Steps, ...]
    evaluations: int
    evaluation: float  # seconds of all of them
    warm_start: float  # seconds

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return sum(own.count * own.seconds for own in self.steps)

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return (self.training + self.evaluation + self.warm_start) / 3600

    @property
    def gpu_hours(self) -> float:
        """All GPUs of the machines count, idle ones included."""
        return self.gpus * self.hours


def budget(made: Plan, shape: Shape, figures: Figures) -> Budget:
    """The cost of a run with this plan, which has GPUs."""
    return _Model(made, shape, figures).budget()


@dataclass(frozen=True)
class _Played:
    """Seconds of playing some episodes on all engines."""

    engines: float  # what their GPUs need, with full batches
    slots: float  # what the environments' slots need
    user: float  # what the simulated user's GPU needs
    longest: float  # the episode that takes longest

    @property
    def seconds(self) -> float:
        return max(self.engines, self.slots, self.user, self.longest)


class _Model:
    """The arithmetic of one run."""

    def __init__(self, made: Plan, shape: Shape, figures: Figures) -> None:
        self.made, self.config, self.shape = made, made.config, shape
        self.gpu, self.episode = figures.gpu.of(shape.parameters / 1e9), figures.episode
        self.signal = make_signal(self.config.signal)
        self.ranks = len(made.of("learner"))
        self.engine_gpus = len(made.of("engine")) * self.config.rollout.tensor_parallel
        self.first = min(self.episode.first, self.config.model.max_length - self.response)
        self.limit = float(self.config.env.max_turns)
        if not self.windowed:  # a growing chat ends where the context does
            room = self.config.model.max_length - self.first - self.response
            self.limit = min(self.limit, 1 + room / (self.episode.observation + self.response))
        self.turns = min(self.episode.turns, self.limit)

    def budget(self) -> Budget:
        config = self.config
        taught = sum(self.asks_teacher(step) for step in range(config.steps))
        counts = ((taught, True), (config.steps - taught, False))
        panels = len(config.evaluate.panels)
        cold = 1 if config.evaluate.cold_episodes else 0
        whole = self.evaluations * panels
        seconds = self.play(config.evaluate.episodes).seconds * whole
        seconds += self.play(config.evaluate.cold_episodes).seconds * cold
        seconds *= config.evaluate.attempts  # as if none succeeded before the last
        return Budget(
            gpus=self.made.gpus,
            steps=tuple(self.steps(count, teacher) for count, teacher in counts if count),
            evaluations=whole + cold,
            evaluation=seconds,
            warm_start=self.warm_start(),
        )

    @property
    def evaluations(self) -> int:
        """Evaluations on all panels: after the warm start, between steps, and at the end."""
        config, every = self.config, self.config.evaluate.every
        between = (config.steps - 1) // every if every and config.steps else 0
        return bool(config.sft.demos) + between + bool(config.steps)

    def asks_teacher(self, step: int) -> bool:
        """Whether the groups that start after `step` finished steps are shown to the teacher."""
        config = self.config
        weighs = config.loss.policy > 0 and self.signal.strength(step) > 0
        return config.needs_teacher and (weighs or config.signal.loss_weight > 0)

    # Tokens

    @property
    def response(self) -> float:
        """What the student writes in a turn."""
        thought = self.episode.thought if self.config.prompt.think else 0.0
        return min(thought + self.episode.action, float(self.config.rollout.max_tokens))

    @property
    def prompt(self) -> float:
        """A turn's prompt with the window preset."""
        whole = self.first + self.config.prompt.window * self.episode.observation
        return min(whole, self.config.model.max_length - self.response)

    @property
    def chat(self) -> float:
        """A whole trajectory with the history preset."""
        return self.first + (self.turns - 1) * self.episode.observation + self.turns * self.response

    @property
    def windowed(self) -> bool:
        return self.config.prompt.preset == "window"

    @property
    def trained(self) -> float:
        """Tokens of an episode that the learner reads."""
        return self.turns * (self.prompt + self.response) if self.windowed else self.chat

    @property
    def prefilled(self) -> float:
        """Tokens of an episode that an engine reads and does not have in its cache."""
        return self.turns * self.prompt if self.windowed else self.chat - self.turns * self.response

    @cached_property
    def hinted(self) -> tuple[float, float]:
        """The share of episodes that have hints, and the turns with a hint in one of them."""
        if "target" in self.config.feedback.sources:  # HINT-SD: some turns of what failed
            targets = float(getattr(self.config.feedback, "targets", 1))
            return 1.0 - self.episode.success, min(targets, self.turns)
        return 1.0, self.turns

    @property
    def taught(self) -> float:
        """Tokens of an episode that distillation trains on, mean."""
        share, turns = self.hinted
        return share * (turns * (self.prompt + self.response) if self.windowed else self.chat)

    @property
    def scored(self) -> float:
        """Tokens of an episode that the teacher reads, mean. The turns of a chat share what comes before."""
        (share, turns), hint = self.hinted, min(self.episode.hint, float(self.config.feedback.max_tokens))
        own = hint + self.response
        return share * (turns * (self.prompt + own) if self.windowed else self.chat + turns * own)

    # Seconds

    def play(self, episodes: int) -> _Played:
        """Cost of running `episodes` episodes."""
        gpu, one, config = self.gpu, self.episode, self.config
        served = one.user if self.made.of("user") else 0.0
        waits = (self.response / config.rollout.tensor_parallel + served) * gpu.token
        turn = self.prefilled / self.turns / gpu.prefill + waits + one.step
        at_once = min(config.env.at_once, config.rollout.engines * config.rollout.max_num_seqs)
        work = self.prefilled / gpu.prefill + self.turns * self.response / gpu.decode
        return _Played(
            engines=episodes * work / self.engine_gpus,
            slots=episodes * self.turns * turn / at_once,
            user=episodes * self.turns * served / gpu.decode,
            longest=self.limit * turn if episodes else 0.0,
        )

    def judge(self) -> tuple[float, float]:
        """Seconds of the engines' GPUs for a step's questions, and seconds until the last is answered."""
        config, one = self.config, self.episode
        if not config.feedback.judged or config.judge.source != "engine":
            return 0.0, 0.0
        most = config.judge.characters / CHARACTERS
        diagnoses = "reflect" in config.feedback.sources
        critique = min(one.critique, config.judge.max_tokens)
        written = self.turns * one.diagnosis if diagnoses else critique
        rounds = [self.asked(self.hinted[0] * config.rollout.episodes, min(most, self.chat), written)]
        if (
            "guide" in config.feedback.sources
        ):  # what was written of a group's trajectories is read for one more
            read = min(most, config.rollout.group_size * critique)
            rounds.append(self.asked(config.rollout.num_groups, read, critique))
        return sum(busy for busy, _ in rounds), sum(until for _, until in rounds)

    def asked(self, questions: float, read: float, written: float) -> tuple[float, float]:
        """The same of questions at one time, with so many tokens read and written for each."""
        config, gpu = self.config, self.gpu
        busy = questions * (read / gpu.prefill + written / gpu.decode) / self.engine_gpus
        alone = read / gpu.prefill + written * gpu.token / config.rollout.tensor_parallel
        return busy, max(busy, math.ceil(questions / config.judge.concurrency) * alone)

    def update(self, tokens: float, adapter: bool) -> float:
        """Forward and backward passes of one rank.

        Of six operations per parameter and token, two are for gradients of weights, which a frozen model does
        not need; computing activations again takes two more.
        """
        operations = 6 - 2 * adapter + 2 * bool(self.config.learner.gradient_checkpointing)
        return tokens / self.ranks / self.gpu.learn * operations / 6

    def learn(self, taught: bool) -> float:
        """The learner's part of a step, with old log-probs of all mini-batches but the first."""
        config, episodes = self.config, self.config.rollout.episodes
        distilled = self.taught * episodes if taught and config.signal.loss_weight > 0 else 0.0
        tokens = (self.trained * episodes if config.loss.policy > 0 else 0.0) + distilled
        batches = config.learner.mini_batches
        forward = tokens * (batches - 1) / batches + (distilled if self.signal.num_candidates else 0.0)
        return self.update(tokens, config.learner.lora.rank > 0) + forward / self.ranks / self.gpu.score

    def phases(self, taught: bool) -> dict[str, float]:
        """Seconds that each phase works in a step, the rollouts' excepted."""
        made, episodes = self.made, self.config.rollout.episodes
        found = {"judge": self.judge()[1] if taught else 0.0, "teacher": 0.0}
        if taught:
            found["teacher"] = episodes * self.scored / len(made.of("teacher")) / self.gpu.score
        tokens = episodes * self.trained
        if references := len(made.of("reference")):
            found["reference"] = tokens / references / self.gpu.score
        if made.of("critic"):
            found["critic"] = tokens / self.ranks / self.gpu.score + self.update(tokens, adapter=False)
        found["learner"] = self.learn(taught)
        found["weight sync"] = self.gpu.sync * self.shape.trained / self.shape.parameters
        return found

    def steps(self, count: int, taught: bool) -> Steps:
        """Cost of `count` steps. Synchronously, or on shared GPUs, the phases follow each other.

        With staleness S, S + 1 batches of episodes are in flight, and the slowest part of the pipeline
        counts; a long episode holds it up only if it takes longer than S + 1 steps.
        """
        played, phases = self.play(self.config.rollout.episodes), self.phases(taught)
        asked, staleness = self.judge()[0] if taught else 0.0, self.config.rollout.max_staleness
        sync, engines = phases["weight sync"], played.engines + asked
        scoring = self.scoring(phases)
        ranks = phases["learner"] + phases.get("critic", 0.0)
        ranks += max(scoring[place.bundle] for place in self.made.of("learner"))
        if staleness == 0 or self.beside_ranks("engine"):
            seconds, bound = played.seconds + sum(phases.values()), "each phase in turn"
        else:
            parts = {
                "the engines": engines + sync,
                "the slots of the environments": played.slots,
                "the simulated user": played.user,
                "the judge": phases["judge"],
                "the teacher": max((scoring[place.bundle] for place in self.made.of("teacher")), default=0.0),
                "the reference policy": max(
                    (scoring[place.bundle] for place in self.made.of("reference")), default=0.0
                ),
                "the learner": ranks + sync + (played.user if self.beside_ranks("user") else 0.0),
                "the longest episode": played.longest / (staleness + 1),
            }
            bound = max(parts, key=lambda part: parts[part])
            seconds = parts[bound]
        return Steps(
            count=count,
            taught=taught,
            phases={"rollout": played.seconds} | phases,
            seconds=seconds,
            bound=bound,
            engines=engines / seconds,
            ranks=ranks / seconds,
        )

    def scoring(self, phases: Mapping[str, float]) -> defaultdict[int, float]:
        """Seconds that scorers work, by bundle: in the same one they take turns, in others side by side."""
        found: defaultdict[int, float] = defaultdict(float)
        for role in ("teacher", "reference"):
            for place in self.made.of(role):
                found[place.bundle] += phases[role]
        return found

    def beside_ranks(self, role: Role) -> bool:
        """Whether any actor with this role shares the GPU of a rank."""
        ranks = {place.bundle for place in self.made.of("learner")}
        return any(place.bundle in ranks for place in self.made.of(role))

    def warm_start(self) -> float:
        """Playing the demonstrations, and the updates on them."""
        sft, one, config = self.config.sft, self.episode, self.config
        context = self.prompt if self.windowed else (self.first + self.chat) / 2
        tokens = self.trained + sft.hints * self.turns * (context + one.hint + one.action)
        playing = sft.demos * self.turns * one.step / config.env.at_once
        return playing + self.update(sft.demos * sft.epochs * tokens, config.learner.lora.rank > 0)
