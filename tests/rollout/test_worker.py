from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from rollout_toys import CHATML, TASK, ToyEngine, ToyPool, make_tokenizer

import hindsight.rollout.worker
from hindsight.configs.schema import Config, Env, Model, Rollout
from hindsight.envs.base import DataMissing, EnvError, SlotDied, SlotTimeout
from hindsight.feedback.sources import Reference
from hindsight.rollout.episode import leaves_room
from hindsight.rollout.types import EngineError, EngineLost
from hindsight.rollout.worker import Worker, tally

ConnectionLost = "the process is being replaced"
TOKENIZER = make_tokenizer(CHATML)
WIN = ["<action>take key</action>", "<action>open door</action>"]


@pytest.fixture
def model(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def lease(monkeypatch):
    monkeypatch.setattr(hindsight.rollout.worker, "SlotPool", lambda pool, *_: pool)


def toy_engine(texts=WIN, **kwargs):
    return ToyEngine(TOKENIZER, "<|im_end|>", texts, **kwargs)


def config(context: int = 2048, **rollout_settings) -> Config:
    return Config(
        model=Model(max_length=context),
        env=Env(max_turns=6),
        rollout=Rollout(max_tokens=64, **rollout_settings),
    )


def roll(worker, *ordinals, size=4, seed=11):
    async def groups():
        return await asyncio.gather(*(worker.rollout(o, TASK, size, 1.0, seed) for o in ordinals))

    return asyncio.run(groups())


def test_groups_have_the_reference_solution_where_it_is_hindsight(model):
    plain = Worker(model, config(), [toy_engine()], ToyPool())
    [group] = roll(plain, 1)
    assert group.reference == ()
    asking = replace(config(), feedback=Reference.Settings(sources=["reference"]))
    [group] = roll(Worker(model, asking, [toy_engine()], ToyPool()), 1)
    assert group.reference == ("take key", "open door") and len(group.trajectories) == 4
    faults = [None] * 8 + [SlotTimeout("hung")]  # 4 episodes of 2 steps, then the reference
    [group] = roll(Worker(model, asking, [toy_engine()], ToyPool(faults)), 1)
    assert group.reference == ("take key", "open door") and group.failures == ()
    assert [failure.kind for failure in group.retried] == ["env_timeout"]
    faults = [None] * 8 + [SlotTimeout("hung")] * 3
    [group] = roll(Worker(model, asking, [toy_engine()], ToyPool(faults)), 1)
    assert group.reference == () and [f.kind for f in group.failures] == ["env_timeout"]


def test_a_measured_prompt_is_as_long_as_the_first_of_an_episode(model):
    engine, pool = toy_engine(), ToyPool()
    worker = Worker(model, config(), [engine], pool)
    tokens = asyncio.run(worker.first_prompt(TASK))
    assert (pool.leased, pool.open, engine.asked) == (1, 0, [])
    roll(worker, 0, size=1)
    assert tokens == len(engine.asked[0][0])
    for context, fits in ((tokens + 16, True), (tokens + 15, False)):
        [group] = roll(Worker(model, config(context), [toy_engine()], ToyPool()), 0, size=1)
        assert leaves_room(tokens, context, 64) == bool(group.trajectories) == fits


def test_groups_play_side_by_side(model):
    engines, pool = [toy_engine(delay=0.001), toy_engine(delay=0.001)], ToyPool()
    worker = Worker(model, config(), engines, pool)
    groups = roll(worker, 5, 6)
    assert [(group.ordinal, len(group.trajectories), group.failures) for group in groups] == [
        (5, 4, ()),
        (6, 4, ()),
    ]
    assert all(trajectory.success for group in groups for trajectory in group.trajectories)
    assert (pool.leased, pool.open) == (8, 0) and worker._router.loads == [0, 0]
    assert all(engine.asked for engine in engines)
    served = [trajectory.served for group in groups for trajectory in group.trajectories]
    assert {one.engine for one in served} == {0, 1} and all(one.start < one.end for one in served)

    turns = [turn for group in groups for t in group.trajectories for turn in t.turns]
    told = [tally(trajectory) for group in groups for trajectory in group.trajectories]
    stats = {name: sum(one[name] for one in told) for name in told[0]}
    assert (stats["episodes"], stats["turns"], stats["malformed"], stats["invalid"]) == (8, 16, 0, 0)
    assert stats["generated_tokens"] == sum(turn.end - turn.start for turn in turns)
    assert stats["prompt_tokens"] == sum(len(ids) for engine in engines for ids, _ in engine.asked)


def test_an_episode_stays_on_its_engine(model):
    engines = [toy_engine(delay=0.001) for _ in range(3)]
    roll(Worker(model, config(), engines, ToyPool()), 0, 1, 2, size=8)
    for engine in engines:  # every second turn was asked where its first one was
        firsts = sum(engine.turn_of(ids) == 2 for ids, _ in engine.asked)
        assert firsts * 2 == len(engine.asked)


def test_seeds_differ_between_episodes_and_repeat_between_runs(model):
    def seeds():
        engine = toy_engine()
        roll(Worker(model, config(), [engine], ToyPool()), 3)
        return sorted(sampling.seed for _, sampling in engine.asked)

    first = seeds()
    assert first == seeds() and len(set(first)) == 8


def test_a_failed_episode_is_played_again_with_its_seed(model):
    engine, pool = toy_engine(), ToyPool([None, SlotDied("killed")])
    worker = Worker(model, config(), [engine], pool)
    (group,) = roll(worker, 0, size=1)
    assert group.trajectories[0].success and group.failures == () and pool.leased == 2
    asked = [sampling.seed for _, sampling in engine.asked]
    assert asked[:2] == asked[2:]
    assert [failure.kind for failure in group.retried] == ["env_died"]
    assert len(group.trajectories[0].turns) == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(SlotDied("x"), "env_died"), (SlotTimeout("x"), "env_timeout"), (EnvError("x"), "env_error")],
)
def test_an_episode_is_dropped_after_its_retries_and_is_no_reward(model, fault, kind):
    pool = ToyPool([fault] * 3)
    worker = Worker(model, config(retries=2), [toy_engine()], pool)
    (group,) = roll(worker, 0, size=1)
    assert group.trajectories == () and pool.leased == 3 and pool.open == 0
    assert [(failure.kind, failure.message, failure.task) for failure in group.failures] == [
        (kind, "x", "t0")
    ]
    assert [failure.kind for failure in group.retried] == [kind] * 2


@pytest.mark.parametrize(
    "error",
    [
        EngineError("out of memory"),
        ActorDiedError(),
        RayTaskError("generate", "trace", EngineError("out of memory")).as_instanceof_cause(),
    ],
)
def test_an_engine_failure_moves_the_episode_to_another_engine(model, error):
    broken, sound = toy_engine([error]), toy_engine()
    worker = Worker(model, config(), [broken, sound], ToyPool())
    (group,) = roll(worker, 0, size=2)
    assert len(group.trajectories) == 2 and len(broken.asked) == 2 and len(sound.asked) == 4
    assert [failure.kind for failure in group.retried] == ["engine"] * 2 and group.failures == ()


@pytest.mark.parametrize("error", [EngineLost("waits for weights"), ActorUnavailableError("away", None)])
def test_a_lost_engine_gets_no_episode_until_it_serves_again(model, error, monkeypatch):
    """Its loss costs no retry; new episodes go elsewhere, or wait where it was the only engine."""
    monkeypatch.setattr(hindsight.rollout.worker, "SERVES_EVERY", 0.01)
    lost, sound, answers = toy_engine([error]), toy_engine(), [False, ConnectionLost, False, True]

    async def serves():
        if not (answer := answers.pop(0) if answers else True):
            return False
        if answer is ConnectionLost:
            raise ActorUnavailableError("away", None)
        lost.texts = WIN
        return True

    lost.serves = SimpleNamespace(remote=serves)
    alone = Worker(model, config(retries=0), [lost], ToyPool())
    (group,) = roll(alone, 0, size=2)
    assert len(group.trajectories) == 2 and group.failures == () and not answers
    assert len(lost.asked) == 2 + 4 and alone._router.closed == set()

    lost.texts, lost.asked, answers[:] = [error], [], [False] * 10_000
    both = Worker(model, config(retries=0), [lost, sound], ToyPool())
    groups = roll(both, 0, 1, size=2)
    assert all(len(group.trajectories) == 2 and group.failures == () for group in groups)
    assert both._router.closed == {0} and len(sound.asked) == 8


def test_abandoned_rollouts_end_and_free_their_slots(model):
    pool = ToyPool()
    worker = Worker(model, config(), [toy_engine(delay=30)], pool)

    async def abandon():
        rollouts = [asyncio.create_task(worker.rollout(ordinal, TASK, 2, 1.0, 11)) for ordinal in (0, 1)]
        await asyncio.sleep(0.1)
        assert pool.open == 4
        await worker.abandon()
        return await asyncio.gather(*rollouts, return_exceptions=True)

    assert all(isinstance(ended, asyncio.CancelledError) for ended in asyncio.run(abandon()))
    assert pool.open == 0 and worker._router.loads == [0] and worker._playing == set()


def test_a_silent_engine_runs_into_its_deadline(model):
    worker = Worker(model, config(request_timeout=0.05, retries=0), [toy_engine(delay=30)], ToyPool())
    (group,) = roll(worker, 0, size=2)
    assert [failure.kind for failure in group.failures] == ["engine", "engine"]
    assert "0.05 s" in group.failures[0].message and worker._router.loads == [0]


@pytest.mark.parametrize("error", [KeyError("bug"), DataMissing("set env.data")])
def test_other_errors_end_the_group_and_free_its_slots(model, error):
    pool = ToyPool([error])
    worker = Worker(model, config(), [toy_engine(delay=0.01)], pool)
    with pytest.raises(type(error)):
        roll(worker, 0)
    assert pool.leased == 4 and pool.open == 0 and worker._router.loads == [0]


def test_a_prompt_over_the_limit_is_a_failure_that_no_retry_helps(model):
    engine, pool = toy_engine(), ToyPool()
    (group,) = roll(Worker(model, config(context=64), [engine], pool), 0, size=2)
    assert group.trajectories == group.retried == () and engine.asked == [] and pool.leased == 2
    assert [failure.kind for failure in group.failures] == ["prompt"] * 2
    assert "model.max_length is 64" in group.failures[0].message


def test_demonstrations_are_retried_too(model):
    pool = ToyPool([SlotTimeout("slow")])
    worker = Worker(model, config(), [], pool)
    assert asyncio.run(worker.demonstrate(TASK, 4, 0.1)) == "demonstration 4 0.1" and pool.leased == 2
    with pytest.raises(SlotTimeout):
        asyncio.run(
            Worker(model, config(retries=1), [], ToyPool([SlotTimeout("slow")] * 2)).demonstrate(TASK, 4, 0.1)
        )


def test_malformed_and_invalid_turns_are_counted_apart(model):
    texts = ["hm", "<action>fly</action>", *WIN]
    worker = Worker(model, config(), [toy_engine(texts)], ToyPool())
    (group,) = roll(worker, 0, size=2)
    stats = [tally(trajectory) for trajectory in group.trajectories]
    assert [(one["turns"], one["malformed"], one["invalid"]) for one in stats] == [(4, 1, 1)] * 2
    assert all(np.isfinite(t.reward) and t.success for t in group.trajectories)
