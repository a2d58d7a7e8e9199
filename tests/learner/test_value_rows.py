"""From a critic's values to advantages: small trajectories by hand, in both prompt presets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learner_toys import TASK, group, sequence, trajectory, turn

from hindsight.configs.schema import Credit
from hindsight.learner.batching import collate
from hindsight.learner.rows import make_rows
from hindsight.learner.value_rows import Steps, estimate, fit, steps_of, value_rows, whiten
from hindsight.rollout.types import Trajectory

PLAIN = Credit(advantage="gae", whiten=False)
TURNS = replace(PLAIN, step="turn")
# Two turns of two tokens and one: in one growing chat, and each in a context of its own.
CHAT = trajectory([turn(0, 2, 4), turn(0, 6, 7, action=None)], True, length=7)
WINDOWS = Trajectory(
    TASK,
    (sequence(5, [(3, 5)]), sequence(6, [(5, 6)])),
    (turn(0, 3, 5), turn(1, 5, 6, action=None)),
    True,
    1.0,
    "terminated",
)


def test_steps_are_sampled_tokens_or_turns():
    def plain(steps: Steps):
        return steps.sequence.tolist(), steps.position.tolist()

    assert plain(steps_of(CHAT, PLAIN)) == ([0, 0, 0], [2, 3, 6])
    assert plain(steps_of(CHAT, TURNS)) == ([0, 0], [2, 6])
    assert plain(steps_of(WINDOWS, PLAIN)) == ([0, 0, 1], [3, 4, 5])
    assert plain(steps_of(replace(CHAT, turns=()), PLAIN)) == ([], [])


@pytest.mark.parametrize(("played", "cuts"), [(CHAT, []), (WINDOWS, [2])])
def test_tokens_by_hand(played, cuts):
    """δ = 0 + ½·4 − 2, 0 + ½·6 − 4, (10 − 0.1) − 6 = 0, −1, 3.9; A = −¼ + 3.9/16, −1 + 3.9/4, 3.9."""
    credit, held = replace(PLAIN, gamma=0.5, lam=0.5), group(played, ordinal=4)
    rows = value_rows([held], credit)
    assert list(rows) == [(4, 0, number) for number in range(len(cuts) + 1)]
    values = np.split(np.array([2, 4, 6], np.float32), cuts)
    taught, advantages = estimate([held], rows, values, credit)
    expected = np.array([-0.00625, -0.025, 3.9])
    np.testing.assert_allclose(np.concatenate(advantages[4, 0]), expected, atol=1e-6)
    assert [len(turn) for turn in advantages[4, 0]] == [2, 1]
    np.testing.assert_allclose(
        np.concatenate([row.returns for row in taught]), expected + np.array([2, 4, 6]), atol=1e-6
    )
    learned = make_rows([held], {}, credit, estimated=advantages)
    np.testing.assert_allclose(np.concatenate([row.advantages for row in learned]), expected, atol=1e-6)
    for row, own in zip(learned, taught, strict=True):
        np.testing.assert_array_equal(row.positions, own.positions)
    np.testing.assert_array_equal(collate(taught).values, [2, 4, 6])


def test_turns_by_hand():
    """A turn's tokens share what it was worth: R − V, with R = 9.9 from either turn on."""
    rows = value_rows([group(CHAT)], TURNS)
    taught, advantages = estimate([group(CHAT)], rows, [np.array([1, 2], np.float32)], TURNS)
    np.testing.assert_allclose(np.concatenate(advantages[0, 0]), [8.9, 8.9, 7.9], rtol=1e-6)
    assert taught[0].positions.tolist() == [2, 6]
    np.testing.assert_allclose(taught[0].returns, [9.9, 9.9], rtol=1e-6)


def test_each_trajectory_keeps_its_own_in_a_batch_that_lost_some():
    """Three groups: two episodes, none (infrastructure dropped them), one."""
    failed = trajectory([turn(0, 1, 3)], False)
    groups = [group(CHAT, failed, ordinal=7), group(ordinal=8), group(WINDOWS, ordinal=9)]
    rows = value_rows(groups, PLAIN)
    values = [np.full(len(row.positions), index + 1, np.float32) for index, row in enumerate(rows.values())]
    taught, advantages = estimate(groups, rows, values, PLAIN)
    assert list(rows) == [(7, 0, 0), (7, 1, 0), (9, 0, 0), (9, 0, 1)] and len(taught) == 4
    means = {owner: np.concatenate(turns).tolist() for owner, turns in advantages.items()}
    assert means[7, 1] == [-2.0, -2.0]
    np.testing.assert_allclose(means[7, 0], [8.9] * 3, rtol=1e-6)
    np.testing.assert_allclose(means[9, 0], [6.9, 6.9, 5.9], rtol=1e-6)
    assert len(make_rows(groups, {}, PLAIN, estimated=advantages)) == 4
    assert estimate([group()], {}, [], Credit(advantage="gae")) == ([], {})


def test_whitening_runs_over_the_tokens_of_the_batch():
    raw = {(0, 0): [np.array([1.0, 2.0]), np.array([6.0])], (0, 1): [np.array([3.0])]}
    made = whiten(raw)
    tokens = np.concatenate([turn for turns in made.values() for turn in turns])
    np.testing.assert_allclose(tokens, (np.array([1, 2, 6, 3]) - 3) / np.sqrt(14 / 4), rtol=1e-5)
    flat = whiten({(0, 0): [np.full(5, 7.0)]})
    assert flat[0, 0][0].tolist() == [0.0] * 5


def test_fit_by_hand():
    rows = list(value_rows([group(WINDOWS)], PLAIN).values())
    values, returns = np.array([1, 2, 3], np.float32), np.array([2, 2, 5], np.float32)
    rows = [
        replace(row, values=values[part], returns=returns[part])
        for row, part in zip(rows, (slice(2), slice(2, 3)), strict=True)
    ]
    # Errors 1, 0, 2 have the variance 2/3, returns 2, 2, 5 have 2.
    assert fit(rows) == pytest.approx({"value_mean": 2, "return_mean": 3, "explained_variance": 2 / 3})
    assert np.isnan(fit([replace(rows[0], returns=np.ones(2))])["explained_variance"])
