"""Replay without actors: groups without loss, the settings of another method, differences of tokens."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_toys import make_run

from hindsight.cluster.local import ReplayError
from hindsight.cluster.replay import (
    Apart,
    checkpoint_before,
    compare,
    read_settings,
    read_step,
    replay_step,
    replay_tables,
)
from hindsight.cluster.report.groups import GroupError, group_row, read_group
from hindsight.cluster.report.lines import write_rows
from hindsight.cluster.report.run_folder import RunFolder
from hindsight.configs.check import render
from hindsight.configs.load import load_config, methods
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, JudgeClient
from hindsight.learner.checkpoint import write_state, writing
from hindsight.learner.samples import to_samples
from hindsight.rollout.types import Failure, Group, Served, Span, TokenSequence, Trajectory, Turn

TASK = TaskSpec("t/1", "toy", "find", "train", {"secret": [1, {"deep": None}]})
FIRST = Observation("a room\u2028", ("look", "go"), "key", "user", "rules", ({"name": "f"},), "the goal")
SECOND = Observation("a hall", state_key="other", role="tool")
FLOATS = st.floats(-50, 0, width=32)


@dataclass(frozen=True)
class Marked(Observation):
    """An observation of an environment's own class."""

    mark: object = None


def played(logprobs, second=SECOND):
    """An episode of two turns in one sequence."""
    n = len(logprobs)
    ids = np.arange(2 * n + 4, dtype=np.int32)
    scores, versions = np.full(len(ids), np.nan, np.float32), np.full(len(ids), -1, np.int32)
    spans = [(2, 2 + n), (3 + n, 3 + 2 * n)]
    for start, end in spans:
        scores[start:end], versions[start:end] = logprobs, 4
    results = [
        StepResult(second, "fine", 0.25, False, False, False, {"errors": ["a"]}),
        StepResult(Observation("the end"), "won", np.float64(0.7), True, False, True),
    ]
    turns = [
        Turn(0, *spans[0], Span(2, 2 + n), FIRST, "go", "go", True, results[0]),
        Turn(0, *spans[1], None, second, "?", None, False, results[1]),
    ]
    sequence = TokenSequence(ids, scores, versions)
    return Trajectory(
        TASK,
        (sequence,),
        tuple(turns),
        True,
        1.0,
        "terminated",
        "lessons",
        Served(1, 2.5, 3.5, 0, 7, ((0.1, 0.4), (0.5, 0.9))),
    )


def group_of(*trajectories):
    failures = (Failure("engine", "lost", "t/1"),)
    return Group(7, TASK, trajectories, failures, (*failures, *failures), ("go", "take"))


def recorded(group, version=5):
    one = to_samples(group)
    for sample in one.samples:
        sample.lags = version - sample.versions
    return json.loads(json.dumps(group_row(one)))


def arrays(group):
    return [
        (array.dtype, array.tobytes())
        for trajectory in group.trajectories
        for sequence in trajectory.sequences
        for array in (sequence.ids, sequence.logprobs, sequence.versions)
    ]


def plain(group):
    """The group without its arrays, which have no single truth value."""
    return replace(group, trajectories=tuple(replace(t, sequences=()) for t in group.trajectories))


@given(logprobs=st.lists(FLOATS, min_size=1, max_size=6))
def test_a_recorded_group_is_the_group(logprobs):
    group = group_of(played(logprobs), played(logprobs[:1]))
    found = read_group(recorded(group))
    assert found.version == 5
    assert plain(found.group) == plain(group)
    assert arrays(found.group) == arrays(group)


def test_an_environments_own_observations_become_plain_ones():
    group = group_of(played([-1.0], Marked(**vars(SECOND), mark={object()})))
    assert plain(read_group(recorded(group)).group) == plain(group_of(played([-1.0])))


@pytest.mark.parametrize("array", [[1, 2], {"object": "AAAA"}, {"int32": "?"}, {"int32": "AAAA"}, {}])
def test_an_array_of_another_form_is_refused(array):
    row = recorded(group_of(played([-1.0])))
    row["group"]["trajectories"][0]["sequences"][0]["ids"] = array
    with pytest.raises(GroupError, match="sequences"):
        read_group(row)


@pytest.mark.parametrize(
    "change", [{"format": 1}, {"format": None}, {"version": "5"}, {"group": {"ordinal": 7}}]
)
def test_a_row_of_another_form_is_refused(change):
    with pytest.raises(GroupError):
        read_group(recorded(group_of(played([-1.0]))) | change)


@pytest.fixture
def run(tmp_path):
    config = load_config("nano", ["credit.success_reward=3.5", "signal.clip=0.3", f"out={tmp_path}"])
    (tmp_path / "config.yaml").write_text(render(config))
    write_rows(tmp_path / "groups/step-000002.jsonl.gz", [recorded(group_of(played([-1.0, -2.0])))])
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories/step-000002.jsonl").write_text("")
    return RunFolder(tmp_path)


def test_the_settings_are_the_runs(run):
    ours, theirs = (
        read_settings(run, []),
        load_config("nano", ["credit.success_reward=3.5", "signal.clip=0.3"]),
    )
    assert replace(ours, out="", method=None) == replace(theirs, out="", method=None)
    assert read_settings(run, ["signal.clip=0.1"]).signal.clip == 0.1


@pytest.mark.parametrize(
    "name", [name for name, file in methods().items() if "judge" not in file.read_text()]
)
def test_another_methods_settings_are_its_own(run, name):
    ours, theirs = read_settings(run, [f"method={name}"]), load_config("nano", [f"method={name}"])
    for section in ("feedback", "signal"):
        assert getattr(ours, section) == getattr(theirs, section)
    assert type(ours.credit) is type(theirs.credit)


def test_a_contradiction_is_named(run):
    with pytest.raises(ReplayError, match=r"signal\.clip"):
        read_settings(run, ["signal.clip=7"])
    with pytest.raises(ReplayError, match="unknown setting"):
        read_settings(run, ["signal.clop=1"])


def test_a_step_that_was_not_recorded_is_named(run):
    [group], version = read_step(run, 2)
    assert (group.group.ordinal, version) == (7, 5)
    with pytest.raises(ReplayError, match=r"no groups of step 3. It has those of 2"):
        read_step(run, 3)


def test_the_checkpoint_is_the_newest_from_before(tmp_path):
    assert checkpoint_before(tmp_path, 1) is None

    async def save(step):
        async with writing(tmp_path / "checkpoints", step, keep=3) as folder:
            write_state(folder, {"step": step})

    for step in (0, 2, 4):
        asyncio.run(save(step))
    assert [checkpoint_before(tmp_path, step).name[-1] for step in (1, 2, 3, 4, 5)] == [
        "0",
        "0",
        "2",
        "2",
        "4",
    ]


def test_tokens_are_compared_where_both_have_a_number():
    row = {"episode": 0, "turn": 0, "reference_logprob": [None, None]}
    ours = row | {"advantage": [1.0, -1.0], "teacher_logprob": [None, -2.0], "weight": [None, 1.2]}
    theirs = row | {"advantage": [1.0, -1.5], "teacher_logprob": [-3.0, -2.0], "weight": [None, 1.2]}
    assert compare([ours], {0: {0: theirs}}) == {
        "advantage": Apart(0.5, 0),
        "teacher_logprob": Apart(0.0, 1),
        "weight": Apart(0.0, 0),
    }
    assert compare([ours], {})["advantage"] == Apart(0.0, 2)


def test_hints_and_teacher_are_computed_from_the_record_alone(tmp_path):
    out = make_run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    first = asyncio.run(replay_step(out, 1, update=False))
    assert first.figures["teacher/spans"] > 0 and "learner/loss" not in first.figures
    assert first.notes == ["no checkpoint from before step 1 is left: weights are those of model.path"]
    assert all(group.informative for group in first.batch)
    won, lost = first.batch[0].samples
    assert (won.advantages > 0).all() and (lost.advantages < 0).all()
    # Nothing but groups was recorded: all numbers are missing there.
    assert first.tokens["teacher_logprob"].missing == first.figures["teacher/span_tokens"]

    other = asyncio.run(replay_step(out, 1, ["method=rlsd"], update=False))
    assert other.figures["teacher/span_tokens"] > first.figures["teacher/span_tokens"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    shown = [str(one) for one in replay_tables(first)]
    assert shown[-1] == first.notes[0]


def test_what_replay_has_not_is_named(tmp_path):
    out = make_run(tmp_path / "run")
    with pytest.raises(ReplayError, match="needs a critic"):
        asyncio.run(replay_step(out, 1, ["method=ppo"]))
    with pytest.raises(ReplayError, match=r"needs a judge.*judge\.url"):
        asyncio.run(replay_step(out, 1, ["method=serl_judge"], update=False))


def test_recorded_answers_of_the_judge_are_used_and_new_ones_not_kept(tmp_path, monkeypatch):
    out, asked = make_run(tmp_path / "run"), []
    chosen = ["method=serl_judge", "judge.source=endpoint", "judge.url=http://x/v1", "judge.model=m"]

    class Endpoint:
        def __init__(self, settings=None):
            pass

        async def __call__(self, question, schema=None):
            asked.append((question, schema))
            return Answer("no JSON")

    monkeypatch.setattr("hindsight.cluster.local.JudgeEndpoint", Endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    (out / "judge").mkdir()
    first = asyncio.run(replay_step(out, 1, chosen, update=False))
    assert len(asked) == first.figures["feedback/asked"] > 0 and not list((out / "judge").iterdir())

    monkeypatch.delenv("OPENAI_API_KEY")
    unanswered = asyncio.run(replay_step(out, 1, chosen, update=False))
    assert "judge: the run's judge folder has no answer to this question" in unanswered.notes[-1]

    recorded = JudgeClient(Endpoint(), replace(first.config.judge, budget=0), out / "judge")
    for question in list(asked):
        asyncio.run(recorded(*question))
    answered = asyncio.run(replay_step(out, 1, chosen, update=False))
    assert answered.notes == first.notes and answered.figures == first.figures
