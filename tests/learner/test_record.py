"""What is written of a step: numbers of each token, hints, notes; and what a resumed run drops."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import REWEIGHT, group, held_tokens, trajectory, turn

from hindsight.cluster.folder import StorageError, storing
from hindsight.cluster.report import lines
from hindsight.cluster.report.lines import append_rows, read_rows, write_rows
from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.record import PolicyLoss, evaluation_rows, loss_columns, step_rows, token_rows
from hindsight.cluster.report.recorder import Recorder
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.configs.schema import Loss
from hindsight.feedback.reading import Note
from hindsight.learner.batching import collate
from hindsight.learner.losses import policy
from hindsight.learner.samples import to_samples
from hindsight.rollout.types import Served

LETTERS = Pieces(lambda token: bytes([96 + token]))  # 1 is a, 2 is b, …
ANY = Pieces(lambda token: b"x")
NAN = np.nan


def step(ordinal=7):
    """Two episodes, of two turns and of one. The teacher has scored the action of the first turn."""
    won = trajectory([turn(0, 3, 7, (4, 6)), turn(0, 10, 13, (11, 13))], True)
    lost = trajectory([turn(0, 3, 8, (5, 7))], False)
    made = to_samples(group(won, lost, ordinal=ordinal))
    first, second = made.samples
    first.advantages = np.array([1, 1, 1, 1, -2, -2, -2], np.float32)
    second.advantages = np.zeros(5, np.float32)
    # The rollout's log-probs at positions 4 and 5 are −0.4 and −0.5: Δ is 0.1 and −1.
    first.teacher_logprobs = np.array([NAN, -0.3, -1.5, NAN, NAN, NAN, NAN], np.float32)
    for sample in made.samples:
        sample.lags = np.zeros(len(sample.positions), np.int32)
    made.trajectories[0].hints[0] = np.array([1, 2, 3], np.int32)
    made.trajectories[0].notes[0] = Note("diagnosis", "wrong: …")
    made.trajectories[1].notes[0] = Note("diagnosis", "good")
    return made


def loss_of(*groups, strength=0.5, aggregation="token-mean", used=None):
    samples = [sample for one in groups for sample in one.samples] if used is None else used
    return PolicyLoss(samples, REWEIGHT, strength, aggregation)


def test_a_turns_row_has_what_the_model_saw_and_a_number_for_each_token():
    made = step()
    first, second, third = token_rows([made], loss_of(made), LETTERS)
    assert [(row["episode"], row["turn"]) for row in (first, second, third)] == [(0, 0), (0, 1), (1, 0)]
    assert (first["prompt"], second["prompt"], third["prompt"]) == ("abc", "hij", "abc")
    assert first["tokens"] == ["d", "e", "f", "g"] and first["ids"] == [4, 5, 6, 7]
    assert (first["action"], second["action"], third["action"]) == ([1, 3], [1, 3], [2, 4])
    assert first["advantage"] == [1, 1, 1, 1] and second["advantage"] == [-2, -2, -2]
    assert first["rollout_logprob"] == [-0.3, -0.4, -0.5, -0.6]
    assert first["teacher_logprob"] == [None, -0.3, -1.5, None] and third["teacher_logprob"] == [None] * 5
    assert first["value"] == first["return"] == first["reference_logprob"] == [None] * 4
    assert first["lag"] == [0] * 4 and isinstance(first["lag"][0], int)
    # exp(0.1) and exp(−1), clipped to [0.8, 1.2], half of the way from 1
    assert first["raw_weight"] == [None, pytest.approx(1.10517), pytest.approx(0.36788), None]
    assert first["weight"] == [None, pytest.approx(1.05259), pytest.approx(0.9), None]
    whole = 1 + 1.052585 + 0.9 + 1 + 3 * 2
    assert first["share"] == pytest.approx([1 / whole, 1.052585 / whole, 0.9 / whole, 1 / whole], rel=1e-5)
    assert second["share"] == pytest.approx([2 / whole] * 3) and third["share"] == [0.0] * 5
    json.dumps([first, second, third], allow_nan=False)


def test_where_lambda_is_0_nothing_was_weighed():
    made = step()
    rows = list(token_rows([made], loss_of(made, strength=0.0), LETTERS))
    assert all("raw_weight" not in row for row in rows)
    assert rows[0]["weight"] == [None, 1.0, 1.0, None]


def test_without_a_policy_loss_there_are_no_shares():
    made = step()
    assert all(set(row["share"]) == {None} for row in token_rows([made], loss_of(used=[]), LETTERS))


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
def test_weights_and_shares_are_those_of_the_loss(aggregation):
    """The loss on the rollout's own log-probs: its gradient by a token's log-prob is −A'·weight."""
    made, other = step(), step(8)
    made.samples[1].advantages += 0.5  # of five tokens; the first sample has seven
    samples = [*made.samples, *other.samples]
    found = loss_columns(samples, loss_of(used=made.samples, aggregation=aggregation))
    batch = collate(made.samples)
    logprobs = batch.rollout.clone().requires_grad_(True)
    held = held_tokens(batch, batch.rollout, aggregation)
    policy(logprobs, torch.zeros_like(logprobs), held, Loss(aggregation=aggregation), REWEIGHT, 0.5)[
        0
    ].backward()
    pull = logprobs.grad.numpy()
    count = len(pull)
    np.testing.assert_allclose(found["share"][:count], np.abs(pull) / np.abs(pull).sum(), rtol=1e-5)
    assert found["share"].sum() == pytest.approx(1.0) and not found["share"][count:].any()
    factor = -pull / held.weights.numpy()
    scored = ~np.isnan(batch.teacher.numpy())
    expected = factor[scored] / batch.advantages.numpy()[scored]
    np.testing.assert_allclose(found["weight"][:count][scored], expected, rtol=1e-5)
    assert np.isnan(found["weight"][:count][~scored]).all()


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40), st.floats(0.0, 1.0), st.integers(0, 99))
def test_shares_sum_to_1_and_weights_stay_within_the_clip(values, strength, seed):
    rng, spans = np.random.default_rng(seed), [(2 * n + 1, 2 * n + 3) for n in range(len(values))]
    made = to_samples(group(trajectory([turn(0, *span) for span in spans], True, length=2 * len(values) + 1)))
    [sample] = made.samples
    sample.advantages = np.repeat(np.array(values, np.float32), 2)
    sample.teacher_logprobs = rng.uniform(-5, 0, 2 * len(values)).astype(np.float32)
    rows = list(token_rows([made], loss_of(made, strength=strength), ANY))
    shares = [share for row in rows for share in row["share"]]
    if any(values):
        assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    else:
        assert set(shares) == {None}
    weights = [weight for row in rows for weight in row["weight"]]
    assert all(0.8 - 1e-4 <= weight <= 1.2 + 1e-4 for weight in weights)


def test_episodes_have_hints_as_read_and_notes():
    made = step()
    first, second = step_rows([made], LETTERS)
    assert (first["episode"], first["group"], first["success"]) == (0, 7, True)
    assert (second["episode"], second["group"]) == (1, 7) and "trial" not in first
    assert first["turns"][0]["hint"] == "abc"
    assert first["turns"][0]["notes"] == [{"kind": "diagnosis", "text": "wrong: …"}]
    assert second["turns"][0]["notes"] == [{"kind": "diagnosis", "text": "good"}]
    assert not {"hint", "notes"} & first["turns"][1].keys() and "hint" not in second["turns"][0]
    assert first["turns"][0]["reward"] == 0.0 and first["turns"][0]["weights"] == [3, 4, 5, 6]


def test_trials_are_numbered_where_there_are_several():
    won, lost = (trajectory([turn(0, 3, 7)], success) for success in (True, False))
    rows = list(evaluation_rows([(lost, won), (), (won,)]))
    assert [(row["episode"], row["trial"]) for row in rows] == [(0, 1), (1, 2), (2, 1)]
    assert [row["tokens"] for row in rows] == [4, 4, 4]  # sampled, not read
    assert all("trial" not in row for row in evaluation_rows([(lost,), (won,)]))


def test_lines_hold_any_text(tmp_path):
    """Line separators that are no line ends, and surrogates that UTF-8 does not have."""
    rows = [{"text": "a\u2028b\x85c\nd"}, {"text": "\ud83d"}, {"text": "😀"}]
    for name in ("a.jsonl", "a.jsonl.gz"):
        write_rows(tmp_path / name, rows)
        assert read_rows(tmp_path / name) == rows
    append_rows(tmp_path / "a.jsonl", rows[:1])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"text": "par')
    assert read_rows(tmp_path / "a.jsonl") == [*rows, rows[0]]


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    recorder = Recorder(tmp_path, LETTERS)
    made = step()
    made.times = {"rollout": [(1.0, 2.0)], "teacher": [(1.0, 1.5), (1.6, 2.0)]}
    first = replace(made.group.trajectories[0], served=Served(3, 1.0, 1.5, 1, 4, ((0.1, 0.2),)))
    made.group = replace(made.group, trajectories=(first, *made.group.trajectories[1:]))
    recorder.evaluation(0, "before warm start", [(made.group.trajectories[0],)])
    for number in (1, 2, 3):
        recorder.step(number, [made], [], loss_of(made))
    recorder.evaluation(3, "after RL", [(made.group.trajectories[0],)])
    (tmp_path / "tokens/mine.jsonl.gz").touch()
    run = RunFolder(tmp_path)
    assert [stage.name for stage in run.steps()] == [
        *("eval, before warm start", "step 1", "step 2", "step 3", "eval, after RL")
    ]
    assert run.tokens("step-000003")[1][0]["ids"] == [4, 5, 6, 7, 8] and len(run.episodes("step-000003")) == 2
    recorder.truncate(1, {(0, "before warm start")})
    assert [stage.key for stage in run.steps()] == ["eval-000000-before-warm-start", "step-000001"]
    assert run.tokens("step-000002") == {} and 0 in run.tokens("step-000001")
    spans = [(span["role"], span["name"]) for span in run.timeline(1)]
    scored = ("teacher", "group 7")
    assert spans == [("rollout", "group 7"), scored, ("engine", "engine 3"), scored]
    episode = run.timeline(1)[2]
    assert (episode["group"], episode["slot"], episode["turns"]) == (7, [1, 4], [[0.1, 0.2]])
    [of_evaluation] = run.timeline(0)
    assert of_evaluation["name"] == "engine 3" and "group" not in of_evaluation
    assert run.timeline(2) == run.timeline(3) == []
    recorder.truncate(1)
    assert run.timeline(0) == [] and len(run.timeline(1)) == 4  # an evaluation that is made again
    recorder.truncate(-1)
    assert run.steps() == [] and run.timeline(1) == [] and (tmp_path / "tokens/mine.jsonl.gz").exists()


def test_the_window_preset_shows_whole_contexts():
    """Each turn has a sequence of its own."""
    made = step()
    won = made.group.trajectories[0]
    other = replace(won, sequences=won.sequences * 2, turns=(won.turns[0], replace(won.turns[1], sequence=1)))
    samples = to_samples(group(other))
    first, second = token_rows([samples], loss_of(samples), LETTERS)
    assert (first["prompt"], second["prompt"]) == ("abc", "abcdefghij")


def test_the_snippets_of_the_documentation_run(tmp_path):
    recorder, made = Recorder(tmp_path, LETTERS), step()
    recorder.step(1, [made], [], loss_of(made))
    text = (Path(__file__).parents[2] / "docs/run-folder.md").read_text()
    found = {"pd": pandas}
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for snippet in snippets:
        exec(snippet.replace("runs/NAME", str(tmp_path)), found)
    assert len(snippets) == 2 and len(found["episodes"]) == 2
    table = found["tokens"]
    assert len(table) == 4 + 3 + 5 and table["share"].sum() == pytest.approx(1.0)
    assert "".join(table[table["episode"] == 0]["tokens"]) == "defgklm"


def test_every_key_is_documented():
    text = (Path(__file__).parents[2] / "docs/run-folder.md").read_text()
    made = step()
    rows = [*token_rows([made], loss_of(made), LETTERS), *step_rows([made], LETTERS)]
    keys = {key for row in rows for key in (*row, *row.get("turns", [{}])[0])}
    assert {key for key in keys if f"`{key}`" not in text} == set()


def test_what_cannot_be_written_ends_the_run(tmp_path, monkeypatch):
    """As for metrics: a full disk is an error for the user."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    made = step()
    monkeypatch.setattr(lines, "atomic_write", full)
    with pytest.raises(StorageError, match="Free some space"), storing(tmp_path):
        Recorder(tmp_path, LETTERS).step(1, [made], [], loss_of(made))
