"""Failures, deadlines, intervals, resources and what is written down."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hindsight.cluster.sft
from hindsight.cluster.evaluate import effective_plays, numbered, wilson
from hindsight.cluster.failures import RunError
from hindsight.cluster.metrics import Metrics
from hindsight.cluster.run import State
from hindsight.cluster.saver import require_storage
from hindsight.cluster.sft import batches, collect, fine_tune, linear
from hindsight.cluster.train import Trainer
from hindsight.cluster.watch import Stalled, Watchdog
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config, Evaluate, Rollout, Sft
from hindsight.envs.base import Demonstration, DemoStep, EnvError, NoDemonstration, Observation, StepResult
from hindsight.envs.runtime.remote import await_remote
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.types import Failure


def test_watchdog_waits_as_long_as_a_deadline_allows(capfd: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(0.2)

    async def updates(seconds: float) -> int:
        with watchdog.waiting(seconds):
            await asyncio.sleep(0.6)
        return 7

    async def calls() -> int:
        """A remote call tells its deadline by itself."""
        return await await_remote(asyncio.sleep(0.6, 7), timeout=30, setting="a.timeout", what="a call")

    assert asyncio.run(watchdog.guard(updates(30))) == 7
    assert asyncio.run(watchdog.guard(calls())) == 7
    with pytest.raises(Stalled, match="no progress for 0 s"):
        asyncio.run(watchdog.guard(updates(0.1)))


def played(success: bool) -> Demonstration:
    return Demonstration(TaskSpec("t", "toy", "open", "train"), Observation("now"), (), success)


def test_demonstrations_that_break_are_counted_and_none_is_an_error() -> None:
    """Of three, one succeeds, one fails, one breaks; of two, none succeeds."""

    async def call(outcome: Any) -> Demonstration:
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            await asyncio.sleep(60)
        return outcome

    def collected(*outcomes: Any, timeout: float = 60) -> tuple[list[Demonstration], list[Failure]]:
        left = iter(outcomes)
        worker = SimpleNamespace(
            demonstrate=SimpleNamespace(remote=lambda task, seed, noise: call(next(left)))
        )
        config = Config(sft=Sft(demos=len(outcomes)), rollout=Rollout(timeout=timeout))
        tasks, actors = [TaskSpec("t", "toy", "open", "train")], SimpleNamespace(worker=worker)
        return asyncio.run(collect(config, actors, tasks, lambda doing, done, of: None))

    kept, failures = collected(played(True), played(False), EnvError("it hangs"))
    assert [demonstration.success for demonstration in kept] == [True]
    assert [(failure.kind, failure.message) for failure in failures] == [("demonstration", "it hangs")]
    with pytest.raises(RunError, match=r"none of 2 demonstrations succeeded \(1 infrastructure failures\)"):
        collected(played(False), EnvError("it hangs"))
    kept, failures = collected(played(True), NoDemonstration("no reference solution"))
    assert len(kept) == 1 and failures == []
    kept, failures = collected(played(True), None, timeout=0.2)
    assert len(kept) == 1
    assert [failure.message for failure in failures] == ["took longer than rollout.timeout = 0.2 s"]
    with pytest.raises(RunError, match=r"none of 1 demonstrations succeeded \(1 infrastructure failures\)"):
        collected(None, timeout=0.2)
    with pytest.raises(RunError, match=r"^toy has no demonstrations .*set sft\.demos=0$"):
        collected(NoDemonstration("no reference solution"))


def test_a_warm_start_without_a_turn_that_fits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two demonstrations, one does not fit; then neither does."""
    step = DemoStep(
        Observation("now"), "go", "go", StepResult(Observation("then"), "", 1.0, True, False, True)
    )
    shown = [
        Demonstration(TaskSpec(name, "toy", "open", "train"), step.observation, (step,), True)
        for name in "ab"
    ]
    updates: list[int] = []

    async def collected(*_: Any) -> tuple[list[Demonstration], list[Failure]]:
        return shown, []

    async def update(losses: dict[str, list[Any]], **_: float) -> dict[str, float]:
        updates.append(len(losses["sft"]))
        return {}

    async def reset_optimizer() -> None:
        pass

    def tune(*fit: str) -> list[Failure]:
        samples = {name: ["a sample"] if name in fit else [] for name in "ab"}
        monkeypatch.setattr(
            hindsight.cluster.sft, "demonstration_samples", lambda demo, *_: samples[demo.task.id]
        )
        learner = SimpleNamespace(update=update, reset_optimizer=reset_optimizer)
        actors, renderer = SimpleNamespace(learner=learner), SimpleNamespace(context=64)
        return asyncio.run(fine_tune(Config(), actors, renderer, [], lambda *_: None, lambda *_: None))  # type: ignore[arg-type]

    monkeypatch.setattr(hindsight.cluster.sft, "collect", collected)
    assert [(one.kind, one.task) for one in tune("b")] == [("prompt", "a")] and updates == [1]
    with pytest.raises(
        RunError, match=r"no turn of 2 successful demonstrations .* raise model\.max_length = 64"
    ):
        tune()


def test_watchdog_ends_a_run_that_stands_still(capfd: pytest.CaptureFixture[str]) -> None:
    async def stands_still() -> None:
        await asyncio.sleep(60)

    with pytest.raises(Stalled, match="while starting"):
        asyncio.run(Watchdog(0.2).guard(stands_still()))
    assert "stands_still" in capfd.readouterr().err


def test_watchdog_lets_a_moving_run_finish() -> None:
    watchdog = Watchdog(0.5)

    async def moves() -> int:
        for _ in range(8):
            await asyncio.sleep(0.1)
            watchdog.beat("moving")
        return 7

    assert asyncio.run(watchdog.guard(moves())) == 7


def test_watchdog_passes_errors_on() -> None:
    async def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(Watchdog(5).guard(fails()))


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (60, 120, 0.4119, 0.5881),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_against_published_values(
    successes: int, episodes: int, low: float, high: float
) -> None:
    assert wilson(successes / max(1, episodes), episodes) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_rate(episodes: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, episodes))
    rate = successes / episodes
    low, high = wilson(rate, episodes)
    assert 0 <= low <= rate + 1e-12
    assert rate - 1e-12 <= high <= 1


@pytest.mark.parametrize(
    ("tasks", "outcomes", "plays"),
    [
        ("abcd", [True, False, False, True], 4),  # each once
        ("aabb", [True, True, False, False], 2),  # the plays of a task say the same
        ("aabb", [True, False, True, False], 4),  # a task says nothing of its plays
        # Deviations from the rate of ½ sum to 1, 0, −1, 0 by task: ¼ / (4/3 · 2 / 8²) = 6.
        ("aabbccdd", [True, True, True, False, False, False, True, False], 6),
        ("aabb", [True] * 4, 2),
        ("aaaa", [True, True, False, True], 1),
        ("", [], 0),
    ],
)
def test_plays_of_one_task_count_for_less(tasks: str, outcomes: list[bool], plays: float) -> None:
    assert effective_plays(list(tasks), outcomes) == pytest.approx(plays)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=40))
def test_plays_count_between_their_tasks_and_themselves(played: list[tuple[str, bool]]) -> None:
    tasks, outcomes = [task for task, _ in played], [outcome for _, outcome in played]
    assert len(set(tasks)) <= effective_plays(tasks, outcomes) <= len(played)


def test_evaluation_repeats_tasks_evenly() -> None:
    tasks = tuple(TaskSpec(str(i), "toy", "k", "eval") for i in range(3))
    assert [task.id for _, task in numbered(tasks, 7)] == ["0", "1", "2", "0", "1", "2", "0"]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3))
def test_warm_start_batches_hold_every_row_once_per_epoch(count: int, size: int, epochs: int) -> None:
    rows = list(range(count))
    plan = batches(rows, size, epochs, seed=1)  # type: ignore[arg-type]
    assert sorted(row for batch in plan for row in batch) == sorted(rows * epochs)  # type: ignore[type-var]
    assert max(len(batch) for batch in plan) <= size


def test_warm_start_rate_rises_then_falls() -> None:
    rates = [linear(step, 10, 1.0, warmup=2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 8)


def test_a_line_that_was_being_written_when_the_run_died_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    whole = [{"step": step, "kind": "train", "x": 1.0} for step in (1, 2, 3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in whole) + '{"step": 4, "ki')
    metrics = Metrics(tmp_path)
    assert metrics.rows() == whole
    metrics.truncate(2, ())
    metrics.write(3, "train", {"x": 2.0})
    metrics.write(3, "eval", {}, "after RL")
    *kept, trained, evaluated = metrics.rows()
    assert kept == whole[:2]
    now, then = time.time(), trained.pop("time")
    assert now - 60 < then <= evaluated.pop("time") <= now + 1
    assert trained == {"step": 3, "kind": "train", "stage": None, "x": 2.0}
    assert evaluated == {"step": 3, "kind": "eval", "stage": "after RL"}
    metrics.close()


def test_an_evaluation_that_was_not_saved_is_not_there_twice(tmp_path: Path) -> None:
    """The run was killed between its row and the checkpoint."""
    metrics = Metrics(tmp_path)
    metrics.write(1, "sft", {"loss": 1.0})
    for step, stage in ((0, "after warm start"), (2, "during RL"), (2, "after RL"), (4, "during RL")):
        metrics.write(step, "eval", {}, stage)
    metrics.truncate(2, {(0, "after warm start"), (2, "during RL")})
    kept = [(row["kind"], row["step"], row["stage"]) for row in metrics.rows()]
    assert kept == [("sft", 1, None), ("eval", 0, "after warm start"), ("eval", 2, "during RL")]


@pytest.mark.parametrize(
    ("step", "made", "again"),
    [(0, [], False), (2, [], True), (2, [2], False), (3, [2], False), (4, [2], True), (6, [2, 4], False)],
)
def test_an_evaluation_that_a_killed_run_has_not_saved_is_made_when_it_resumes(
    step: int, made: list[int], again: bool
) -> None:
    """Every two steps of six; the last one is after training."""
    events = list[str]()

    async def note(event: object) -> None:
        events.append(str(event))

    evaluations = [SimpleNamespace(step=one, stage="during RL") for one in made]
    config = Config(steps=6, sft=Sft(demos=0), evaluate=Evaluate(every=2))
    state = State(step=step, warm_started=True, evaluations=evaluations)  # type: ignore[arg-type]
    run: Any = SimpleNamespace(config=config, actors=None, state=state, save=lambda: note("save"))
    trainer = Trainer(run)
    trainer.sync_weights = lambda everywhere: note("sync")  # type: ignore[method-assign,assignment]
    trainer.evaluate = note  # type: ignore[method-assign,assignment]
    asyncio.run(trainer.prepare())
    assert events == ["sync", "during RL", "save"] if again else events == ["sync"]


@pytest.mark.parametrize(("demos", "version"), [(0, 0), (0, 7), (8, 7)])
def test_a_run_that_goes_back_to_the_beginning_gives_all_copies_its_first_weights(
    demos: int, version: int
) -> None:
    """The model is saved before the first step only if the warm start has trained it."""
    events = list[str]()

    async def note(event: str) -> None:
        events.append(event)

    config = Config(sft=Sft(demos=demos))
    run: Any = SimpleNamespace(
        config=config, actors=None, state=State(version=version), save=lambda: note("save")
    )
    trainer = Trainer(run)
    trainer.sync_weights = lambda everywhere: note(f"sync {everywhere}")  # type: ignore[method-assign]
    trainer.evaluate = lambda stage: note(stage)  # type: ignore[method-assign]
    if demos:
        trainer.warm_start = lambda: note("warm start")  # type: ignore[method-assign]
    asyncio.run(trainer.prepare())
    begins = ["sync True"] if version else []
    rest = ["warm start", "after warm start", "save"] if demos else ["before warm start"]
    assert events == begins + rest


@pytest.mark.parametrize(("step", "admitted"), [(0, 6), (3, 6), (4, 4), (5, 2)])
def test_no_group_is_admitted_that_no_step_would_take(step: int, admitted: int) -> None:
    """Two groups a step, up to two steps ahead, six steps in all."""

    async def produce(ordinal: int, *_: Any) -> int:
        return ordinal

    async def start() -> list[int]:
        config = Config(steps=6, rollout=Rollout(num_groups=2, max_staleness=2))
        ordinals = iter(range(99))
        sampler = SimpleNamespace(admit=lambda: next(ordinals), task=lambda ordinal: None)
        run: Any = SimpleNamespace(config=config, actors=None, state=State(step=step), sampler=sampler)
        trainer = Trainer(run)
        trainer.produce = produce  # type: ignore[assignment,method-assign]
        trainer.start_groups()
        return [await group for group in trainer.in_flight]  # type: ignore[misc]

    assert asyncio.run(start()) == list(range(admitted))


def test_each_scorer_divides_logits_as_the_loss_that_it_serves() -> None:
    for method, teacher in (("serl", 0.6), ("hero", 1.0)):
        config = load_config(None, [f"method={method}", "rollout.temperature=0.6"])
        assert config.temperatures == {"teacher": teacher, "reference": 0.6}


def test_a_node_that_does_not_share_the_folder_is_named_before_training(tmp_path: Path) -> None:
    def actor(address: str, blind: bool = False) -> Any:
        async def answer(_: Any, marker: str) -> tuple[str, bool]:
            assert Path(marker).exists()
            return address, not blind

        return SimpleNamespace(__ray_call__=SimpleNamespace(remote=answer))

    def actors(learner: list[Any], teacher: list[Any]) -> Any:
        return SimpleNamespace(
            trained=lambda: {"learner": SimpleNamespace(ranks=learner)},
            scorers=lambda: {"teacher": SimpleNamespace(replicas=teacher)},
            checkpoint_bytes=0,
        )

    config, here, there = Config(out=str(tmp_path)), actor("10.0.0.1"), actor("10.0.0.2", blind=True)
    asyncio.run(require_storage(config, actors([here, here], [here])))
    with pytest.raises(RunError, match=r"alone: learner on 10.0.0.2 cannot see it.*all nodes share"):
        asyncio.run(require_storage(config, actors([here, there, there], [here])))
    with pytest.raises(RunError, match=r"alone: teacher on 10.0.0.2 cannot see it"):
        asyncio.run(require_storage(config, actors([here], [there])))
    assert list((tmp_path / "checkpoints").iterdir()) == []
