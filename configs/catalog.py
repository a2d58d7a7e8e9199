"""The methods as a table: each is a choice in four places, read off its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hindsight.configs.load import load_config, methods
from hindsight.configs.schema import Config

COLUMNS = ("method", "paper", "credit", "feedback", "teacher signal", "teacher weights", "what it is")


@dataclass(frozen=True)
class MethodRow:
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
        method = f"{self.title} (`{self.name}`)"
        return (method, self.paper, self.credit, self.feedback, self.signal, self.teacher, self.about)


def _describe(name: str, file: Path) -> MethodRow:
    """The row of a method: its first line holds title, paper and a sentence; the rest is settings."""
    title, paper, about = (part.strip() for part in file.read_text().splitlines()[0].lstrip("# ").split("|"))
    config = load_config(None, [f"method={name}"])
    asks = config.signal.asks_teacher
    return MethodRow(
        name=name,
        title=title,
        paper=paper,
        about=about,
        credit=_credit(config),
        feedback=config.feedback.summary,
        signal=config.signal.summary if asks else "–",
        teacher=_teacher(config) if asks else "–",
    )


def catalog() -> list[MethodRow]:
    """Every built-in method."""
    return [_describe(name, file) for name, file in methods().items()]


def _credit(config: Config) -> str:
    penalty = f", KL {config.loss.kl:g}" if config.loss.kl else ""
    return config.credit.summary + penalty if config.loss.policy else "–"


def _teacher(config: Config) -> str:
    teacher = config.teacher
    if teacher.sync_every == 0:
        return "frozen"
    copy = "copy" if teacher.ema_decay == 0 else f"EMA {teacher.ema_decay:g}"
    copy += " of the adapter" if config.averages_adapter else ""
    return f"{copy} every {'step' if teacher.sync_every == 1 else f'{teacher.sync_every} steps'}"
