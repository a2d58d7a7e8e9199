"""Phases, clocks and the outlook of a run, with a clock that the test moves."""

from __future__ import annotations

import pytest

from hindsight.cluster.progress import Forecast, Progress, evaluations_left


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run() -> tuple[Clock, Progress]:
    clock = Clock()
    return clock, Progress(clock)


def test_each_phase_has_a_clock_and_a_time_left_of_its_own() -> None:
    clock, progress = run()
    progress.begin("starting")
    clock.now += 50
    progress.begin("warm start", total=4)
    assert progress.phase is not None and progress.phase.left(clock.now) is None  # nothing is done yet
    clock.now += 30
    progress.advance(3)
    assert progress.phase.own(clock.now) == 30 and progress.phase.left(clock.now) == 10


def test_a_phase_inside_another_stops_its_clock_and_gives_it_back() -> None:
    clock, progress = run()
    progress.begin("RL", total=10, done=4)  # resumed
    clock.now += 20
    progress.advance(6)
    with progress.within("evaluation", total=2):
        assert progress.doing == "evaluation"
        clock.now += 100
        assert [at - phase.since for phase, at in progress.clocks()] == [20, 100]
        with pytest.raises(RuntimeError), progress.within("deeper"):
            raise RuntimeError
    assert [phase.name for phase in progress.phases] == ["RL"] and progress.doing == "RL"
    assert progress.phase is not None
    assert progress.phase.own(clock.now) == 20 and progress.phase.left(clock.now) == 40


def test_an_activity_has_the_clock_of_its_beginning() -> None:
    clock, progress = run()
    progress.now("rolling out", 0, 4)
    clock.now += 5
    progress.now("rolling out", 1, 4)
    assert (progress.since, progress.done) == (1000, 1)
    progress.now("updating")
    assert (progress.since, progress.done, progress.total) == (1005, 0, None)


@pytest.mark.parametrize(
    ("step", "steps", "every", "left"),
    [(1, 10, 0, 1), (10, 10, 0, 1), (1, 10, 5, 2), (5, 10, 5, 2), (6, 10, 5, 1), (1, 12, 4, 3), (2, 4, 1, 3)],
)
def test_evaluations_that_follow_a_step(step: int, steps: int, every: int, left: int) -> None:
    """As `Trainer` makes them: after each `every` steps but the last, and one at the end."""
    assert evaluations_left(step, steps, every) == left


def test_the_outlook_counts_steps_without_evaluations_and_evaluations_apart() -> None:
    clock, progress = run()
    progress.begin("RL", total=5)
    for step, seconds in enumerate((90, 10, 12), start=1):
        clock.now += seconds
        forecast = progress.stepped(step, 5, evaluations=2, evaluation=60)
        with progress.within("evaluation"):
            clock.now += 1000
    assert forecast == Forecast(steps=2, step=12, evaluations=2, evaluation=60)  # the first step compiled
    assert forecast.seconds == 144 and progress.ends == clock.now - 1000 + 144
    assert str(forecast) == "about 2 min left (2 steps of 12 s, 2 evaluations of 1 min)"
    assert str(Forecast(0, 12, 1, 60)) == "about 1 min left (1 evaluation of 1 min)"


def test_a_start_says_what_is_not_ready_yet() -> None:
    clock, progress = run()
    with progress.starting("engine", "loading") as engine:
        clock.now += 10
        with progress.starting("learner", "loading") as learner:
            clock.now += 20
            assert learner() == "learner: ready after 20 s; still starting: engine"
            assert progress.status()["starting"]["learner"]["does"] == "loading"
            assert progress.status()["starting"]["engine"] == {"does": "loading", "since": 1000}
        assert engine() == "engine: ready after 30 s"
    with pytest.raises(RuntimeError), progress.starting("teacher", "loading"):
        raise RuntimeError
    assert not progress.waits


def test_episodes_in_flight() -> None:
    _, progress = run()
    progress.begin("RL", total=2)
    with progress.playing(4), pytest.raises(RuntimeError), progress.playing(2):
        assert progress.status()["episodes"] == {"in_flight": 6, "finished": 0}
        raise RuntimeError  # these two were lost
    assert progress.status()["episodes"] == {"in_flight": 0, "finished": 4}
    progress.stepped(1, 2, 1, 1.0)
    assert progress.status()["episodes"]["finished"] == 0
