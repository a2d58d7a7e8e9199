"""A group in the driver: rollout, advantages, hints, teacher, and what is left where one of them fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from hindsight.cluster.metrics import step_metrics
from hindsight.cluster.report.record import episode_row
from hindsight.cluster.train import Trainer
from hindsight.cluster.turns import Turns
from hindsight.cluster.view import View
from hindsight.cluster.watch import Watchdog
from hindsight.configs.load import load_config
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.runtime.remote import ActorLost
from hindsight.envs.tasks import TaskSpec
from hindsight.feedback.judge_client import Answer, JudgeError
from hindsight.feedback.reading import Note
from hindsight.learner.batching import collate
from hindsight.rollout.types import Failure, Span, TokenSequence, Trajectory, Tried, Turn
from hindsight.teacher.pool import ScorerPool
from hindsight.teacher.scorer import Scored

TASK = TaskSpec("t", "toy", "open", "train")
CLOSE = np.array([7, 8], dtype=np.int32)
SERL = ("signal.name=reweight", "feedback.sources=[immediate]")
DISTILL = ("signal.name=distill", "signal.top_k=2", "feedback.sources=[immediate]", "loss.policy=0")
PPO = ("credit.advantage=gae",)


VERSIONS = np.array([-1, -1, -1, -1, 4, 5, 5], dtype=np.int32)  # weights were synced within the turn


def trajectory(success, parsed=True):
    ids = np.array([1, 2, 7, 8, 3, 4, 5], dtype=np.int32)
    result = StepResult(Observation("later"), "Dark.", float(success), success, False, success)
    span = Span(5, 6) if parsed else None
    turn = Turn(0, 4, 7, span, Observation("now"), "<action>look</action>", "look", parsed, result)
    sequence = TokenSequence(ids, np.zeros(7, np.float32), VERSIONS)
    return Trajectory(TASK, (sequence,), (turn,), success, float(success), "terminated")


def remote(function):
    """What an actor's method looks like to the driver."""

    async def call(*args):
        return function(*args)

    return SimpleNamespace(remote=call)


def unsolved(task):
    return Tried(())


def score_of(request):
    width = 0 if request.candidates is None else request.candidates.shape[1]
    size = len(request.span)
    return Scored(np.full(size, -1.0, np.float32), np.full((size, width), -2.0, np.float32))


async def likeliest(samples, k):
    return [np.tile(np.arange(k, dtype=np.int32), (len(sample.positions), 1)) for sample in samples]


class Produced:
    """One group through the driver's code, with toys for everything that runs elsewhere."""

    def __init__(
        self, *overrides, judge=None, score=None, play=None, step=0, successes=(True, False), parsed=True
    ):
        outcomes = [trajectory(success, parsed or success) for success in successes]
        outcomes.append(Failure("engine", "was slow", "t"))
        self.asked = []  # of the teacher and of the reference policy

        def played(ordinal, index, task, temperature, seed):
            assert (ordinal, task) == (3, TASK)
            return (play or outcomes.__getitem__)(index)

        def scored(sequences, requests, version):
            self.asked.extend(requests)
            return [score_of(request) for request in requests]

        async def values(samples):
            self.valued = samples
            return [np.zeros(len(sample.positions), np.float32) for sample in samples]

        config = load_config(None, [f"rollout.group_size={len(outcomes)}", *overrides])
        turns = Turns()
        actor = SimpleNamespace(score=remote(score or scored), ready=remote(score or scored))
        teacher = ScorerPool("teacher", [actor], 60.0, turns.of)
        teacher.context, teacher.start_timeout = 512, 0.1
        reference = teacher if config.needs_reference else None
        renderer = {"encode": lambda text: np.full(len(text.split()), 9, np.int32)}
        renderer |= {"close_ids": CLOSE, "show": lambda seen: seen.text}
        run = SimpleNamespace(
            config=config,
            actors=SimpleNamespace(
                worker=SimpleNamespace(
                    play=remote(lambda *args: Tried(played(*args))), reference=remote(unsolved)
                ),
                reference=reference,
                scorers=lambda: {"teacher": teacher, "reference": reference},
                teacher=teacher,
                turns=turns,
                learner=SimpleNamespace(candidates=likeliest),
                critic=SimpleNamespace(values=values) if config.needs_critic else None,
            ),
            renderer=SimpleNamespace(**renderer),
            view=View(),
            opening=None,
            judge=judge,
            watchdog=Watchdog(60),
            now=lambda doing: None,
            state=SimpleNamespace(version=6),
            recorder=MagicMock(),
        )
        trainer = Trainer(run)
        self.method = trainer.method
        self.group = asyncio.run(trainer.produce(3, TASK, step))

    @property
    def failures(self):
        return [failure.kind for failure in self.group.failures]

    @property
    def scored(self):
        """(trajectory, turn) of the tokens that the teacher scored."""
        return {
            (index, int(turn))
            for index, trajectory in enumerate(self.group.trajectories)
            for sample in trajectory.samples
            if sample.teacher_logprobs is not None
            for turn in sample.turns[~np.isnan(sample.teacher_logprobs)]
        }

    @property
    def hints(self):
        """The hint of each turn that has one, as the teacher read it, by (trajectory, turn)."""
        own = enumerate(self.group.trajectories)
        return {(index, turn): ids for index, one in own for turn, ids in one.hints.items()}

    @property
    def metrics(self):
        return step_metrics([self.group], {"time/rollout": 1.0, "time/step": 1.0}, 6, False)

    @property
    def losses(self):
        return self.method.losses([self.group])

    @property
    def is_requeued(self):
        return self.method.must_requeue(self.group)


async def judge(question, schema):
    if "success, reward 1" in question.write(12_000):
        raise JudgeError("gone")
    return Answer("This attempt failed.", tokens_read=30, tokens_written=4)


def test_turns_with_hints_are_scored():
    one = Produced(*SERL)
    assert one.scored == {(0, 0), (1, 0)} and len(one.asked) == 2 and one.failures == ["engine"]
    for sample in one.group.samples:  # an action has one token here
        np.testing.assert_equal(sample.teacher_logprobs, np.array([np.nan, -1.0, np.nan], np.float32))
    assert one.metrics["feedback/texts"] == 2
    both = step_metrics([one.group] * 2, {"time/rollout": 1.0, "time/step": 1.0}, 0, False)
    assert both["teacher/tokens"] == 2 * sum(request.cut + len(request.tail) for request in one.asked)
    assert both["teacher/spans"] == both["teacher/span_tokens"] == 4.0
    assert one.losses == {"policy": one.group.samples, "signal": []}
    assert one.group.times.keys() == {"rollout", "teacher"} and not any(
        own.notes for own in one.group.trajectories
    )


def test_the_hint_is_kept_as_the_teacher_read_it():
    """What the tail of each request has before the ids that close the message; cut to its limit."""
    one = Produced(*SERL)
    assert one.hints.keys() == {(0, 0), (1, 0)}
    for request in one.asked:
        hint = one.hints[request.trajectory, request.turn]
        rest = len(request.tail) - len(hint)
        assert request.tail[len(hint) :].tolist() == [*CLOSE, 3, 4] and (hint == 9).all() and rest == 4
    whole = len(one.hints[0, 0])
    long = Produced(*SERL, "feedback.max_tokens=8")
    assert len(long.hints[0, 0]) == 8 + 6 < whole  # the closing line has six words


def test_without_scores_there_is_no_hint():
    assert Produced(*SERL, score=fails).hints == {}


def test_what_a_judge_said_is_kept_with_its_time():
    said = '{"turns": [{"turn": 1, "verdict": "good", "cause": "", "fix": null}]}'

    async def reflects(question, schema):
        return Answer(said)

    one = Produced(*DISTILL, "feedback.sources=[reflect]", judge=reflects)
    assert one.hints == {}  # what is good needs no hint
    assert [own.notes for own in one.group.trajectories] == [{0: Note("diagnosis", "good")}] * 2
    assert one.group.times.keys() == {"rollout", "judge"}


def test_siblings_are_compared_before_anyone_is_asked():
    """Advantages of the group, without a teacher, a reference policy or a judge."""
    one = Produced()
    assert one.asked == [] and one.group.informative
    won, lost = one.group.samples
    assert won.advantages.tolist() == [-value for value in lost.advantages] and (won.advantages > 0).all()
    assert one.metrics["feedback/asked"] == one.metrics["teacher/seconds_busy"] == 0


def test_a_judges_failure_costs_its_trajectory_and_is_counted():
    one = Produced(*SERL, "feedback.sources=[judge]", judge=judge)
    assert one.scored == {(1, 0)} and one.failures == ["engine", "judge"]
    assert one.metrics["feedback/asked"] == 2
    assert (one.metrics["feedback/tokens_read"], one.metrics["feedback/tokens_written"]) == (30, 4)


def fails(*args):
    raise RayTaskError("score", "trace", MemoryError("full")).as_instanceof_cause()


def test_a_teacher_that_fails_keeps_the_judges_failures():
    one = Produced(*SERL, "feedback.sources=[judge]", judge=judge, score=fails)
    assert one.scored == set() and one.failures == ["engine", "judge", "teacher"]
    assert one.losses["policy"] == one.group.samples  # plain GRPO


def test_a_teacher_that_does_not_come_back_in_time_is_counted():
    def away(*args):
        raise ActorUnavailableError("node 3 is away", None)

    one = Produced(*SERL, score=away)
    assert one.scored == set() and one.failures == ["engine", "teacher"]


def test_a_dead_teacher_ends_the_run():
    """No later step could be saved without it."""

    with pytest.raises(ActorLost, match="scoring group 3"):
        Produced(*SERL, score=MagicMock(side_effect=RayActorError()))


def lose(*args):
    raise ObjectLostError("f" * 56, None, "")


def test_a_lost_answer_costs_its_hints_alone():
    """The node that held it is gone, which says nothing about the teacher."""
    one = Produced(*SERL, score=lose)
    assert one.scored == set() and one.failures == ["engine", "teacher"]


def test_a_lost_rollout_costs_itself_alone():
    """Its node is gone; the other episodes of the group are trained on."""

    def play(index):
        return lose() if index == 1 else trajectory(success=index == 0)

    one = Produced(play=play)
    assert one.failures == ["lost"] and len(one.losses["policy"]) == 2 and not one.is_requeued


def test_a_group_whose_reference_fails_escapes_no_penalty():
    """It gives the policy loss no samples; without a penalty it would."""
    one = Produced("loss.kl=0.01", score=fails)
    assert one.failures == ["engine", "teacher"] and one.losses["policy"] == []
    assert len(Produced(score=fails).losses["policy"]) == 2


def test_a_task_comes_again_where_a_failure_took_all_that_it_would_have_taught():
    assert Produced(*DISTILL, score=fails).is_requeued
    assert Produced(*SERL, "loss.kl=0.01", score=fails).is_requeued
    assert not Produced(*SERL, score=fails).is_requeued  # it trains as plain GRPO
    assert not Produced(*DISTILL, "loss.policy=1", score=fails).is_requeued
    judged = Produced(*DISTILL, "feedback.sources=[judge]", judge=judge)
    assert not judged.is_requeued  # one of two questions was answered
    assert not Produced(*DISTILL).is_requeued  # the failure of a rollout left enough


def test_a_reference_solution_that_failed_takes_what_distillation_would_have_taught():
    """`Produced` has a failed rollout, and no reference solution."""
    reference = (*DISTILL, "feedback.sources=[reference]")
    assert Produced(*reference).is_requeued
    assert not Produced(*reference, "loss.policy=1").is_requeued


@pytest.mark.parametrize(("overrides", "needed"), [((), 2), (SERL, 2), (DISTILL, 1), (PPO, 1)])
def test_a_group_that_failures_left_too_small_comes_again(overrides, needed):
    """One trajectory teaches nothing where siblings are compared."""
    left = [Produced(*overrides, successes=(True,) * number).is_requeued for number in range(3)]
    assert left == [number < needed for number in range(3)]


@pytest.mark.parametrize(("tokens", "turns"), [("action", {(0, 0)}), ("response", {(0, 0), (1, 0)})])
def test_weights_on_whole_responses_need_no_action(tokens, turns):
    """RLSD weights every token, those of an answer that could not be read too."""
    one = Produced(*SERL, f"signal.tokens={tokens}", parsed=False)
    assert one.scored == turns and len(one.asked) == len(turns)


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        (("signal.strength=0",), {}),
        ((), {"step": 50}),  # the strength has fallen to 0
        ((), {"successes": (True, True)}),
        (("feedback.sources=[]", "signal.name=none"), {}),
    ],
)
def test_nobody_is_asked_where_it_would_not_count(overrides, more):
    # Without a judge, asking would raise.
    one = Produced(*SERL, "feedback.sources=[judge]", *overrides, **more)
    assert (one.scored, one.metrics["feedback/texts"], one.asked) == (set(), 0, [])


@pytest.mark.parametrize("divergence", ["jsd", "sampled"])
def test_distillation_learns_from_groups_that_all_failed(divergence):
    """Every token of the turns that have a hint, whatever the advantages."""
    one = Produced(*DISTILL, f"signal.divergence={divergence}", successes=(False, False))
    assert one.metrics["teacher/spans"] == len(one.asked) == 2 and not one.group.informative
    assert one.losses["policy"] == [] and len(one.losses["signal"]) == 2
    for sample in one.losses["signal"]:
        assert sample.positions.tolist() == [4, 5, 6] and sample.teacher_logprobs.tolist() == [-1.0] * 3
        if divergence == "sampled":
            assert sample.candidates is None and sample.teacher_candidates is None
        else:
            assert sample.candidates.tolist() == [[0, 1]] * 3 and (sample.teacher_candidates == -2.0).all()


def test_a_reference_is_asked_for_all_that_was_sampled():
    one = Produced("loss.kl=0.01")
    assert [sample.reference_logprobs.tolist() for sample in one.group.samples] == [[-1.0] * 3] * 2
    assert one.scored == set() and one.metrics["feedback/texts"] == 0


def test_each_token_has_the_version_that_sampled_it():
    one = Produced()
    asyncio.run(one.method.finish([one.group], 0))
    for sample in one.group.samples:
        assert sample.versions.tolist() == [4, 5, 5] and sample.lags.tolist() == [2, 1, 1]
    assert collate(one.losses["policy"]).lags.tolist() == [2.0, 1.0, 1.0] * 2
    assert one.metrics["rollout/staleness"] == 2
    assert one.metrics["rollout/staleness_mean"] == pytest.approx(4 / 3)
    assert episode_row(one.group.group.trajectories[0], 0)["turns"][0]["weights"] == [4, 5]


def test_a_critic_takes_the_place_of_siblings():
    """Nothing is compared in a group; the critic is asked about the whole batch, once."""
    one = Produced(*PPO, "credit.step=turn", "credit.whiten=false", successes=(True, True))
    assert all(sample.advantages is None for sample in one.group.samples)
    asyncio.run(one.method.finish([one.group], 0))
    assert [sample.positions.tolist() for sample in one.valued] == [[4], [4]]  # a turn's first token
    for sample in one.group.samples:
        assert sample.advantages.tolist() == [10.0] * 3  # the reward of success, less a value of 0
    assert one.losses["policy"] == one.group.samples


ASYNC = "rollout.max_staleness="


@pytest.mark.parametrize(
    ("overrides", "step", "needs"),
    [
        (SERL, 9, "trajectory"),
        (("signal.name=reweight", "feedback.sources=[sibling,immediate]"), 9, "sibling"),
        ((*SERL, ASYNC + "1"), 8, "trajectory"),  # a group that starts now is in flight during step 9
        ((*SERL, ASYNC + "1"), 9, "group"),  # the teacher is synced after step 10
        ((*SERL, ASYNC + "2"), 8, "group"),
        ((*SERL, ASYNC + "2"), 10, "trajectory"),
        ((*SERL, ASYNC + "2", "teacher.sync_every=0"), 8, "trajectory"),
        (DISTILL, 0, "trajectory"),
        ((*DISTILL, ASYNC + "1", "teacher.sync_every=0"), 0, "group"),  # candidates are by one learner
        ((*DISTILL, "learner.ranks=2"), 0, "group"),
        ((*DISTILL, "learner.ranks=2", "signal.divergence=sampled"), 0, "trajectory"),
    ],
)
def test_a_group_is_scored_early_only_by_one_version(overrides, step, needs):
    assert Produced(*overrides).method.needs(step) == needs


@pytest.mark.parametrize("staleness", range(4))
def test_no_sync_falls_between_two_scorings_of_a_group(staleness):
    """A group that starts after `step` steps is in the batch of a step up to `step + 1 + staleness`."""
    for every in (0, 1, 2, 3, 10):
        method = Produced(*SERL, f"{ASYNC}{staleness}", f"teacher.sync_every={every}").method
        for step in range(25):
            ends = range(step + 1, step + 1 + staleness)  # of steps before its own
            synced = any(every and end % every == 0 for end in ends)
            assert (method.needs(step) == "group") == synced
