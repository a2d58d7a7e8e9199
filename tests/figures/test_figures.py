"""The formulas give the figures that were recorded before the samples were restructured, to 1e-6.

figures.json.gz was recorded at commit a79f2e1 from groups.json: for every method, at steps 0, 25 and 50
if a strength decays, every hint, score request, column, loss term, gradient and statistic. See README.md.
"""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from figure_steps import compute_step
from settled import on_cpus

from hindsight.configs.load import load_config
from hindsight.learner.signals import make_signal

FOLDER = Path(__file__).parent
TOLERANCE = 1e-6  # of the larger figure, which counts as at least what `smallest` says
VARIANTS = {  # name -> (method, overrides): branches of the formulas that no method takes
    "grpo+sequence_mean": ("grpo", ("loss.aggregation=sequence-mean", "loss.dual_clip=0")),
    "grpo+no_importance": ("grpo", ("loss.tis_cap=0", "loss.entropy=0", "loss.clip_high=0.3")),
    "rloo+turns": ("rloo", ("credit.statistics=turns",)),
    "gigpo+similar": ("gigpo", ("credit.similarity=0.8", "credit.normalize=none", "credit.step_weight=0.5")),
    "hgpo+paper": ("hgpo", ("credit.history_offset=1", "credit.join_group=true", "credit.similarity=0.8")),
    "ppo+turn": (
        "ppo",
        ("credit.step=turn", "credit.gamma=0.95", "credit.gae_lambda=0.9", "credit.whiten=false"),
    ),
    "serl+constant": ("serl", ("signal.decay_steps=0", "signal.clip=0.5")),
    "serl+next_similar": (
        "serl_anchor",
        ("feedback.sources=[immediate, next_observation]", "feedback.similarity=0.8"),
    ),
    "rlsd+only": ("rlsd", ("feedback.sources=[sibling]",)),
    "sdpo+forward": ("sdpo", ("signal.divergence=forward", "feedback.combine=all")),
}
# Recorded; their estimators are gone, or their hints follow other rules now.
DROPPED = ("grpo_kl+k1", "grpo_kl+k2", "serl+future_pairs", "serl+judge_and")
CHANGED_PROMPTS = ("judge", "reflect", "target")  # sources whose questions have been reworded since
GROUPS = json.loads((FOLDER / "groups.json").read_text())
RECORDED = json.loads(gzip.decompress((FOLDER / "figures.json.gz").read_bytes()))
# Methods that were added since have no figures here.
RECORDINGS = {name: (name, ()) for name in RECORDED if "+" not in name} | VARIANTS


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Everything that is no list and no dict, by where it is; NaN is null."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {key: leaf for name, one in items for key, leaf in leaves(one, (*path, str(name))).items()}
    if not isinstance(value, dict | list) or not value:
        found[path] = None if isinstance(value, float) and math.isnan(value) else value
    return found


def smallest(path: tuple[str, ...]) -> float:
    """What a figure counts as at least: float32 sums over tokens of both signs depend on their order."""
    if path[0] == "inputs" or "turns" in path:
        return 1e-3
    return 10.0 if path[-1] == "sum" else 0.1


def differences(recorded: Any, computed: Any, reworded: bool = False) -> list[str]:
    """A line for each figure that is missing, new or not the same."""
    old, new = leaves(recorded), leaves(computed)
    old = {path: value for path, value in old.items() if path[-1] != "distil_distance"}  # no longer reported
    lines = [f"{path}: only in one" for path in old.keys() ^ new.keys()]
    for path in old.keys() & new.keys():
        if reworded and "questions" in path:
            continue
        one, other = old[path], new[path]
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        limit = TOLERANCE * max(smallest(path), abs(one), abs(other)) if numbers else 0
        if abs(one - other) > limit if numbers else one != other:
            lines.append(f"{path}: {one!r} became {other!r}")
    return sorted(lines)


def test_every_recording_is_compared() -> None:
    assert RECORDED.keys() - set(DROPPED) == RECORDINGS.keys()


@pytest.mark.parametrize("name", RECORDINGS)
def test_figures_are_those_recorded(name: str) -> None:
    method, overrides = RECORDINGS[name]
    candidates = ["signal.top_k=4"] * (load_config(None, [f"method={method}"]).signal.loss_weight > 0)
    config = on_cpus(
        load_config(None, [f"method={method}", "feedback.max_tokens=160", *candidates, *overrides])
    )
    signal = make_signal(config.signal)
    reworded = any(name in CHANGED_PROMPTS for name in config.feedback.sources)
    strengths = RECORDED[name]["strengths"]
    assert {step: signal.strength(int(step)) for step in strengths} == pytest.approx(strengths)
    for step, recorded in RECORDED[name]["steps"].items():
        computed = compute_step(config, GROUPS, int(step))
        assert differences(recorded, computed, reworded)[:10] == [], f"step {step}"


def test_a_changed_figure_is_noticed() -> None:
    recorded = RECORDED["serl"]["steps"]["0"]
    changed = json.loads(json.dumps(recorded))
    first = next(iter(changed["inputs"]["policy"].values()))
    first["advantage"][0] *= 1 + 1e-5
    assert len(differences(recorded, changed)) == 1
