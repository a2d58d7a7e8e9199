"""What the cost of a run is computed from: rates of one GPU and the size of an episode, assumed or given.

None of the defaults is a measurement of ours on a GPU. A YAML file replaces what its user has measured:

    source: one H200, measured with benchmarks.gpu
    gpu: {billions: 7.6, learn: 6100, score: 31000}
    episode: {turns: 14.5}
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hindsight.configs.registry import unknown
from hindsight.configs.setting import Setting, setting, settings

LEAST = 1e-9  # of what is divided by


class RatesError(ValueError):
    """The figures for a budget are missing or wrong; the message says which, and what to do."""


@dataclass(frozen=True)
class Gpu:
    """What one GPU does with a model of `billions` of parameters in bfloat16.

    The defaults are for a GPU of the H100 class.
    """

    billions: float = setting(7.6, "billions of parameters of the model that the rates are of", low=LEAST)
    decode: float = setting(2500.0, "tokens/s that an engine samples with a full batch", low=LEAST)
    token: float = setting(0.012, "s that a sequence waits for its next token, alone", low=LEAST)
    prefill: float = setting(20_000.0, "tokens/s that an engine reads", low=LEAST)
    learn: float = setting(4500.0, "tokens/s of a learner rank, forward and backward, all weights", low=LEAST)
    score: float = setting(20_000.0, "tokens/s of a forward pass: teacher, old log-probs", low=LEAST)
    sync: float = setting(1.0, "s of a weight sync, all weights", low=0.0)

    def of(self, billions: float) -> Gpu:
        """The rates for a model of another size. Time is taken as proportional to the parameters."""
        slower = billions / self.billions
        return Gpu(
            billions=billions,
            decode=self.decode / slower,
            token=self.token * slower,
            prefill=self.prefill / slower,
            learn=self.learn / slower,
            score=self.score / slower,
            sync=self.sync * slower,
        )


@dataclass(frozen=True)
class Episode:
    """What an episode of an environment asks for."""

    turns: float = setting(0.0, "turns, mean", low=LEAST)
    first: float = setting(0.0, "tokens of the first prompt", low=LEAST)
    observation: float = setting(0.0, "tokens that each later turn adds to the prompt", low=0.0)
    action: float = setting(0.0, "tokens of an action", low=LEAST)
    thought: float = setting(130.0, "tokens of reasoning before an action, with prompt.think", low=0.0)
    step: float = setting(0.02, "s of the environment per turn", low=0.0)
    user: float = setting(0.0, "tokens that a simulated user writes per turn", low=0.0)
    success: float = setting(0.5, "share that succeeds", low=0.0, high=1.0)
    hint: float = setting(200.0, "tokens of a hint", low=0.0)
    critique: float = setting(150.0, "tokens that a judge writes about a trajectory", low=0.0)
    diagnosis: float = setting(65.0, "tokens that HERO's judge writes about a turn", low=0.0)


# Prompts and actions: reference solutions of the tasks that are used without official data, rounded
# (`python -m benchmarks.prompts`). Turns are guesses for a student in training.
EPISODES = {
    "alfworld": Episode(turns=20, first=360, observation=70, action=20),
    "webshop": Episode(turns=7, first=230, observation=390, action=20),
    "taubench": Episode(turns=12, first=5200, observation=400, action=50, user=40, step=0.1),
    "appworld": Episode(turns=15, first=640, observation=550, action=100, step=0.1),
    "bfcl": Episode(turns=12, first=4100, observation=430, action=40),
    "searchqa": Episode(turns=3, first=130, observation=140, action=12),
}


@dataclass(frozen=True)
class Figures:
    """What a budget is computed from."""

    source: str = ""  # of what was given
    gpu: Gpu = field(default_factory=Gpu)
    episode: Episode = field(default_factory=Episode)
    given: frozenset[str] = frozenset()  # keys such as gpu.decode; the others are assumptions

    def all(self) -> list[Setting]:
        """Every figure, with its key and meaning."""
        return [*settings(self.gpu, "gpu."), *settings(self.episode, "episode.")]


def figures_for(environment: str, file: Path | None = None) -> Figures:
    """The figures for an environment: those of the file, and assumptions for what it leaves out.

    Raises:
        RatesError: the file cannot be used; or nothing is assumed of that environment, and no file says it.
    """
    base = Figures(episode=EPISODES.get(environment, Episode()))
    found = replace(base, **_read(file, base)) if file else base
    wrong = [item for item in found.all() if not item.allowed]
    if not wrong:
        return found
    if unstated := [item.key for item in wrong if item.key not in found.given]:
        raise RatesError(
            f"nothing is known of the episodes of env.name = {environment}: state {', '.join(unstated)} in "
            "the file of --rates (docs/cost.md)"
        )
    raise RatesError(
        "\n".join(f"{file}: {item.key} = {item.value!r}: expected {item.expected}" for item in wrong)
    )


def _read(file: Path, base: Figures) -> dict[str, Any]:
    """The fields of `Figures` that a file changes.

    Assumed rates are first converted to the size of model that the file states.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RatesError(f"{file}: not a readable YAML file: {error}") from error
    values = values if isinstance(values, dict) else {}
    sections = {name: own for name, own in values.items() if name != "source"}
    if not sections or not all(isinstance(own, dict) for own in sections.values()):
        raise RatesError(f"{file}: expected `source: TEXT` and figures below gpu: or episode:")
    if not isinstance(source := values.get("source"), str):
        raise RatesError(f"{file}: `source` must say where the figures come from, such as one H200, measured")
    known, keys = [item.key for item in base.all()], {f"{a}.{b}" for a, own in sections.items() for b in own}
    if wrong := sorted(keys - {*known}):
        raise RatesError("\n".join(f"{file}: {unknown('figure', key, known)}" for key in wrong))

    def merged(assumed: Gpu | Episode, own: dict[str, Any]) -> Any:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(assumed), own))

    try:
        changed = {name: merged(getattr(base, name), own) for name, own in sections.items()}
        if "gpu" in changed and LEAST <= changed["gpu"].billions < math.inf:  # else it is refused later
            changed["gpu"] = merged(base.gpu.of(changed["gpu"].billions), sections["gpu"])
    except OmegaConfBaseException as error:
        raise RatesError(f"{file}: {str(error).splitlines()[0]}") from error
    return {"source": source, "given": frozenset(keys), **changed}
