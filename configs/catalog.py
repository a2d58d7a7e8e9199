"""The methods as a table: each is a choice in four places, read off its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hindsight.configs.load import load, methods
from hindsight.configs.schema import Config

COLUMNS = (
    "method",
    "paper",
    "credit",
    "feedback",
    "the teacher's signal",
    "the teacher's weights",
    "what it is",
)


@dataclass(frozen=True)
class Method:
    """One row."""

    name: str  # method=NAME
    title: str
    paper: str  # number at arXiv
    about: str
    credit: str
    feedback: str
    signal: str
    teacher: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts in the order of COLUMNS."""
        return (
            f"{self.title} (`{self.name}`)",
            self.paper,
            self.credit,
            self.feedback,
            self.signal,
            self.teacher,
            self.about,
        )


def describe(name: str, file: Path) -> Method:
    """The row of a method: its first line holds title, paper and a sentence; the rest is settings."""
    title, paper, about = (part.strip() for part in file.read_text().splitlines()[0].lstrip("# ").split("|"))
    config = load(None, [f"method={name}"])
    asks = config.reweight.strength > 0 or config.distill.weight > 0
    return Method(
        name=name,
        title=title,
        paper=paper,
        about=about,
        credit=_credit(config),
        feedback=_feedback(config),
        signal=_signal(config),
        teacher=_teacher(config) if asks else "–",
    )


def catalog() -> list[Method]:
    """Every method."""
    return [describe(name, file) for name, file in methods().items()]


def _credit(config: Config) -> str:
    if config.loss.policy == 0:
        return "–"
    parts = [config.credit.advantage]
    parts += [f"over {config.credit.statistics}"] if config.credit.advantage in ("grpo", "rloo") else []
    if config.credit.critic:
        parts += [
            f"over {config.credit.step}s",
            f"γ = {config.credit.gamma:g}, λ = {config.credit.gae_lambda:g}",
        ]
    parts += ["without std"] if config.credit.normalize == "none" else []
    parts += [f"KL {config.loss.kl:g}"] if config.loss.kl else []
    return ", ".join(parts)


def _feedback(config: Config) -> str:
    feedback = config.feedback
    sibling = {
        "none": "",
        "only": "successful sibling",
        "or": "successful sibling or ",
        "and": "successful sibling and ",
    }
    source = "" if feedback.source == "none" else feedback.source.replace("_", " ")
    alone = "" if feedback.observation else " without the observation"
    shown = sibling[feedback.sibling] + source + alone
    return f"{shown}, per {feedback.granularity}" if shown else "–"


def _signal(config: Config) -> str:
    if config.distill.weight > 0:
        kinds = {"jsd": f"JSD, β = {config.distill.beta:g}", "reverse": "reverse KL", "forward": "forward KL"}
        return f"distill: {kinds.get(config.distill.divergence, 'reverse KL on sampled tokens')}"
    return f"weight of {config.reweight.tokens} tokens" if config.reweight.strength > 0 else "–"


def _teacher(config: Config) -> str:
    teacher = config.teacher
    if teacher.sync_every == 0:
        return "frozen"
    copy = "copy" if teacher.ema_decay == 0 else f"EMA {teacher.ema_decay:g}"
    copy += " of the adapter" if config.averages_adapter else ""
    return f"{copy} every {'step' if teacher.sync_every == 1 else f'{teacher.sync_every} steps'}"
