"""The figures that papers print, against their meaning spelled out."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.cluster import outcomes
from hindsight.cluster.outcomes import (
    Figure,
    Play,
    all_figures,
    bootstrap,
    by_task,
    paired,
    pass_at,
    pass_hat,
    plays_of,
    repeats,
)

PLAYS = st.lists(st.booleans(), min_size=1, max_size=6)
EVALUATIONS = st.dictionaries(st.sampled_from("abcdef"), PLAYS, min_size=1)


def made(found: dict[str, list[bool]]) -> dict[str, list[Play]]:
    """Plays whose score, turns and tokens follow from their places."""
    return {
        task: [Play(one, 0.5 + one / 2, 3.0 + place, 10.0 * place) for place, one in enumerate(own)]
        for task, own in found.items()
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@given(PLAYS, st.integers(1, 6))
def test_pass_at_and_pass_hat_are_means_over_every_choice_of_plays(own: list[bool], k: int) -> None:
    k = min(k, len(own))
    chosen = list(combinations(own, k))
    assert pass_at(len(own), sum(own), k) == pytest.approx(mean([any(some) for some in chosen]))
    assert pass_hat(len(own), sum(own), k) == pytest.approx(mean([all(some) for some in chosen]))


@given(EVALUATIONS)
def test_figures_of_tasks_are_what_their_names_say(found: dict[str, list[bool]]) -> None:
    values, most = by_task(made(found)), repeats(made(found))
    lengths = [len(own) for own in found.values()]
    assert sum(n >= most for n in lengths) >= len(lengths) / 2 and most in lengths
    assert values["success"] == {task: mean([float(one) for one in own]) for task, own in found.items()}
    assert values["score"] == {task: mean([0.5 + one / 2 for one in own]) for task, own in found.items()}
    assert values["turns"] == {task: mean([3.0 + i for i in range(len(own))]) for task, own in found.items()}
    ks = [k for k in range(1, 7) if f"pass_at_{k}" in values]
    assert ks == ([] if most == 1 else sorted({1, 2, most} | ({4} if most > 4 else set())))
    for k in ks:
        able = {task: own for task, own in found.items() if len(own) >= k}
        assert values[f"pass_at_{k}"].keys() == values[f"pass_hat_{k}"].keys() == able.keys()
    if most > 1:
        firsts = {task: own[:most] for task, own in found.items() if len(own) >= most}
        assert values[f"avg_at_{most}"] == {task: sum(own) / most for task, own in firsts.items()}
        assert values[f"best_at_{most}"] == {task: float(any(own)) for task, own in firsts.items()}


@settings(max_examples=20)
@given(EVALUATIONS)
def test_intervals_are_of_means_over_tasks(found: dict[str, list[bool]]) -> None:
    for name, figure in all_figures(made(found)).items():
        values = list(by_task(made(found))[name].values())
        assert figure.mean == pytest.approx(mean(values))
        assert min(values) - 1e-9 <= figure.low <= figure.mean + 1e-9
        assert figure.mean - 1e-9 <= figure.high <= max(values) + 1e-9


@settings(max_examples=20)
@given(EVALUATIONS, st.sampled_from([0.25, -1.0]))
def test_pairs_are_compared_task_by_task(found: dict[str, list[bool]], gain: float) -> None:
    """A gain that is the same on every task has no spread, however much the tasks differ."""
    first = made(found)
    second = {
        task: [Play(play.success, play.score + gain, play.turns) for play in own]
        for task, own in first.items()
    }
    second["of the second alone"] = [Play(True, 1.0, 1.0)]
    told = paired(first, second)
    score = told["score"]
    assert [score.mean, score.low, score.high] == pytest.approx([gain] * 3)
    assert told["success"] == Figure(0.0, 0.0, 0.0)
    assert "tokens_per_play" not in told  # the second's are not known
    assert paired(first, {"another": [Play(True, 1.0, 1.0)]}) == {}


def test_an_interval_does_not_depend_on_how_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(40)
    whole = bootstrap(values)
    assert whole[0] < values.mean() < whole[1]
    monkeypatch.setattr(outcomes, "CHUNK", 1_300)
    assert bootstrap(values) == pytest.approx(whole, abs=0.01)
    # The normal approximation, which is good for means of 40.
    spread = 1.96 * values.std() / math.sqrt(40)
    assert whole == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.02)


def test_plays_are_read_with_their_trials() -> None:
    def row(task: str, trial: int, success: bool, reward: float, turns: int) -> dict[str, object]:
        return {"task": task, "trial": trial, "success": success, "reward": reward, "turns": [{}] * turns}

    found = plays_of([row("a", 1, False, 0.2, 4), row("a", 2, True, 1.0, 2), row("a", 1, False, 0.1, 5)])
    assert [(play.success, play.score, play.turns) for play in found["a"]] == [
        (True, 1.0, 3.0),
        (False, 0.1, 5.0),
    ]
