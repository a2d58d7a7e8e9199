"""What an advantage estimator of one's own may return."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learner_toys import group, visits

from hindsight.configs import registry
from hindsight.configs.method import Credit
from hindsight.learner.credit import advantages, assign
from hindsight.learner.samples import to_samples


def by_trajectory(group, credit):
    return [1.0, np.float32(-2)]


def each_turn(group, credit):
    return [np.array([1.0, 2.0]), [-3]]


def each_token(group, credit):
    return [[np.array([1.0, 2.0]), np.array([3.0, 4.0])], np.array([[5.0, 6.0]])]


def too_few_trajectories(group, credit):
    return [1.0]


def too_many_turns(group, credit):
    return [np.zeros(3), 0.0]


def too_few_turns(group, credit):
    return [np.zeros(1), 0.0]


def too_many_tokens(group, credit):
    return [[np.zeros(2), np.zeros(3)], 0.0]


def a_column_per_token(group, credit):
    return [[np.zeros((2, 1)), np.zeros((2, 1))], 0.0]


@pytest.fixture
def own(monkeypatch):
    """Settings that name an estimator of this file."""
    monkeypatch.setattr(registry, "PLUGIN_FOLDERS", [str(Path.cwd())])  # so that sys.path stays as it is
    return lambda estimator: Credit(advantage=f"{__name__}:{estimator.__name__}")


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (by_trajectory, [[[1, 1], [1, 1]], [[-2, -2]]]),
        (each_turn, [[[1, 1], [2, 2]], [[-3, -3]]]),
        (each_token, [[[1, 2], [3, 4]], [[5, 6]]]),
    ],
)
def test_an_estimator_may_return_a_number_per_trajectory_turn_or_token(own, estimator, expected):
    held = group(visits(True, "ab"), visits(False, "a"))
    made = advantages(held, own(estimator))
    assert [[values.tolist() for values in turns] for turns in made] == expected
    assert {values.dtype for turns in made for values in turns} == {np.dtype(np.float32)}
    samples = to_samples(held)
    assign(samples, own(estimator))
    for sample, turns in zip(samples.samples, expected, strict=True):
        assert sample.advantages.tolist() == [value for values in turns for value in values]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (too_few_trajectories, "too_few_trajectories returned 1 advantages for 2 trajectories"),
        (too_many_turns, r"2 for its turns, or \[2, 2\] for their tokens"),
        (too_few_turns, r"2 for its turns, or \[2, 2\] for their tokens"),
        (too_many_tokens, r"2 for its turns, or \[2, 2\] for their tokens"),
        (a_column_per_token, r"2 for its turns, or \[2, 2\] for their tokens"),
    ],
)
def test_advantages_of_another_shape_are_refused(own, estimator, message):
    with pytest.raises(ValueError, match=rf"^credit\.advantage = .*{message}"):
        advantages(group(visits(True, "ab"), visits(False, "a")), own(estimator))
