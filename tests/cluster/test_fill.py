"""Filling a group in the driver: rollout, feedback, teacher, and what is left where one of them fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from hindsight.cluster.fill import Filler, hindsight_metrics
from hindsight.cluster.train import Trainer
from hindsight.cluster.watch import Watchdog
from hindsight.configs.schema import Config, Distill, Feedback, Loss, Reweight
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.runtime.remote import ActorLost
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.rollout.types import Failure, Group, Span, TokenSequence, Trajectory, Turn
from hindsight.teacher.scorer import Scored

TASK = TaskSpec("t", "toy", "open", "train")
CLOSE = np.array([7, 8], dtype=np.int32)


def trajectory(success, parsed=True):
    ids = np.array([1, 2, 7, 8, 3, 4, 5], dtype=np.int32)
    result = StepResult(Observation("later"), "Dark.", float(success), success, False, success)
    span = Span(5, 6) if parsed else None
    turn = Turn(0, 4, 7, span, Observation("now"), "<action>look</action>", "look", parsed, result, 0)
    sequence = TokenSequence(ids, np.zeros(7, dtype=np.float32))
    return Trajectory(TASK, (sequence,), (turn,), success, float(success), "terminated")


def remote(function):
    """What an actor's method looks like to the driver."""

    async def call(*args):
        return function(*args)

    return SimpleNamespace(remote=call)


def score_of(request):
    width = 0 if request.candidates is None else request.candidates.shape[1]
    size = len(request.span)
    return Scored(np.full(size, -1.0, np.float32), np.full((size, width), -2.0, np.float32))


async def likeliest(rows, k):
    return [np.tile(np.arange(k, dtype=np.int32), (len(row.positions), 1)) for row in rows]


def fill(feedback, judge=None, score=None, strength=0.5, successes=(True, False), parsed=True, **settings):
    """One group through the driver's code, with toys for everything that runs elsewhere."""
    trajectories = tuple(trajectory(success, parsed or success) for success in successes)
    group = Group(3, TASK, trajectories, (Failure("engine", "was slow", "t"),))
    asked = []

    def scored(sequences, requests):
        asked.extend(requests)
        return [score_of(request) for request in requests]

    def encode(text):
        return np.full(len(text.split()), 9, dtype=np.int32)

    teacher = SimpleNamespace(score=remote(score or scored))
    reference = teacher if "loss" in settings else None
    run = SimpleNamespace(
        config=Config(feedback=feedback, **settings),
        actors=SimpleNamespace(
            workers=[SimpleNamespace(rollout=remote(lambda *args: group))],
            reference=reference,
            scorers=lambda: {"teacher": teacher, "reference": reference},
            teacher_context=512,
            learner=SimpleNamespace(candidates=likeliest),
        ),
        renderer=SimpleNamespace(close_ids=CLOSE, encode=encode, show=lambda observation: observation.text),
        opening=None,
        judge=judge,
        watchdog=Watchdog(60),
    )
    filled = asyncio.run(Filler(run).fill(3, TASK, strength))
    return filled, asked


def kinds(filled):
    return [failure.kind for failure in filled.failures]


async def judge(question, schema):
    if "success, reward 1" in question.write(12_000):
        raise JudgeError("gone")
    return Answer("This attempt failed.", tokens_read=30, tokens_written=4)


def test_turns_with_hindsight_are_scored():
    filled, asked = fill(Feedback())
    assert filled.hints.texts.keys() == filled.scores.keys() == {(0, 0), (1, 0)} and len(asked) == 2
    assert kinds(filled) == ["engine"]
    values = hindsight_metrics([filled, filled])
    assert values["teacher/tokens"] == 2 * sum(request.cut + len(request.tail) for request in asked)
    assert values["teacher/spans"] == values["teacher/span_tokens"] == 4.0  # an action has one token here


def test_a_judges_failure_costs_its_trajectory_and_is_counted():
    filled, _ = fill(Feedback(source="judge"), judge)
    assert filled.scores.keys() == {(1, 0)} and kinds(filled) == ["engine", "judge"]
    assert filled.hints.asked == 2
    values = hindsight_metrics([filled])
    assert (values["feedback/tokens_read"], values["feedback/tokens_written"]) == (30.0, 4.0)


def fails(*args):
    raise RayTaskError("score", "trace", MemoryError("full")).as_instanceof_cause()


def test_a_teacher_that_fails_keeps_the_judges_failures():
    filled, _ = fill(Feedback(source="judge"), judge, score=fails)
    assert filled.scores == {} and kinds(filled) == ["engine", "judge", "teacher"]


def test_a_teacher_that_is_out_of_reach_for_once_is_counted():
    def away(*args):
        raise ActorUnavailableError("node 3 is away", None)

    filled, _ = fill(Feedback(), score=away)
    assert filled.scores == {} and kinds(filled) == ["engine", "teacher"]


@pytest.mark.parametrize("error", [RayActorError(), ObjectLostError("f" * 56, None, "")])
def test_a_dead_teacher_ends_the_run(error):
    """No later step could be saved without it."""

    def lost(*args):
        raise error

    with pytest.raises(ActorLost, match="scoring group 3"):
        fill(Feedback(), score=lost)


def test_a_group_whose_reference_fails_escapes_no_penalty():
    """It gives the policy loss no rows; without a penalty it would."""

    def rows(loss):
        filled, _ = fill(Feedback(source="none"), score=fails, strength=0.0, loss=loss)
        config = Config(feedback=Feedback(source="none"), loss=loss)
        trainer = Trainer(SimpleNamespace(config=config, actors=None))
        return kinds(filled), len(trainer.rows([filled], None)["policy"])

    assert rows(Loss(kl=0.01)) == (["engine", "teacher"], 0)
    assert rows(Loss())[1] == 2


def test_a_task_comes_again_where_a_failure_took_all_that_it_would_have_taught():
    plain, distill = Loss(policy=0.0), Distill(weight=1.0, top_k=2)

    def again(score=None, source="immediate", **settings):
        settings = {"feedback": Feedback(source=source), **settings}
        filled, _ = fill(judge=judge, score=score, **settings)
        settings.pop("strength", None)
        return Trainer(SimpleNamespace(config=Config(**settings), actors=None)).failed(filled)

    assert again(fails, loss=plain, distill=distill)
    assert again(fails, loss=Loss(kl=0.01))
    assert not again(fails)  # it trains as plain GRPO
    assert not again(fails, loss=Loss(policy=1.0), distill=distill)
    assert not again(source="judge", loss=plain, distill=distill)  # one of two questions was answered
    assert not again(loss=plain, distill=distill)  # the failure of a rollout left enough


@pytest.mark.parametrize(("tokens", "turns"), [("action", {(0, 0)}), ("response", {(0, 0), (1, 0)})])
def test_weights_on_whole_responses_need_no_action(tokens, turns):
    """RLSD weights every token, those of an answer that could not be read too."""
    filled, asked = fill(Feedback(), parsed=False, reweight=Reweight(tokens=tokens))
    assert filled.scores.keys() == turns and len(asked) == len(turns)


@pytest.mark.parametrize("idle", [{"strength": 0.0}, {"successes": (True, True)}])
def test_nobody_is_asked_where_it_would_not_count(idle):
    filled, asked = fill(Feedback(source="judge"), None, **idle)  # without a judge, asking would raise
    assert (filled.scores, filled.hints.texts, asked) == ({}, {}, [])


@pytest.mark.parametrize("divergence", ["jsd", "sampled"])
def test_distillation_learns_from_groups_that_all_failed(divergence):
    """Every token of the turns that have hindsight, whatever the advantages."""
    distill = Distill(weight=1.0, divergence=divergence, top_k=2)
    filled, asked = fill(Feedback(), strength=0.0, successes=(False, False), distill=distill)
    assert filled.scores == {} and filled.teacher_spans == len(asked) == 2 and len(filled.distill) == 2
    for row in filled.distill:
        assert row.positions.tolist() == [4, 5, 6] and row.teacher_logprobs.tolist() == [-1.0] * 3
        if divergence == "sampled":
            assert row.candidates is None and row.teacher_candidates is None
        else:
            assert row.candidates.tolist() == [[0, 1]] * 3 and (row.teacher_candidates == -2.0).all()


def test_a_reference_is_asked_for_all_that_was_sampled():
    filled, _ = fill(Feedback(source="none"), strength=0.0, loss=Loss(kl=0.01))
    assert {turn: len(values) for turn, values in filled.reference.items()} == {(0, 0): 3, (1, 0): 3}
    assert filled.hints.texts == {}
