"""The probe's pairs, requests and scores, and what the command does with them."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from dataclasses import replace
from math import log
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from replay_toys import ROOM, TASK, Door, make_run

from hindsight.cluster.failures import RunError
from hindsight.cluster.probe import command, play
from hindsight.cluster.probe.command import (
    check_tokens,
    named_model,
    recorded_groups,
    run_probe,
    settings_of,
    whole,
    with_states,
)
from hindsight.cluster.probe.pairs import Pair, recorded_pairs
from hindsight.cluster.probe.play import Played, Unplayable, choices, play_task
from hindsight.cluster.probe.score import (
    Hinted,
    Reader,
    clipped_share,
    feedbacks,
    foreign,
    of_another_task,
    rooted,
)
from hindsight.configs.check import render
from hindsight.configs.load import load_config
from hindsight.envs.base import EnvError, Observation
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.signals import make_signal
from hindsight.rollout.models import resolve
from hindsight.rollout.render import load_renderer
from hindsight.rollout.types import Group
from hindsight.teacher.contexts import ContextLimits, build_requests
from hindsight.teacher.scorer import Scored

OTHER = TaskSpec("window", "toy", "open", "train")
SOLUTIONS = {"door": ["take key", "open door"], "window": ["climb", "look"]}


class DoorSeat(Door):
    """A seat at the toy environment."""

    seen = ROOM

    async def reset(self, task):
        self.key, self.seen = False, ROOM
        return ROOM

    async def step(self, action):
        result = await super().step(action)
        self.seen = result.observation
        return result


class Open(Observation):
    """A page with a form: what is typed there is not listed."""

    def admits(self, action):
        return True


def test_random_actions_are_the_listed_ones_or_those_of_other_tasks():
    listed = Observation("", ("look", "go", "take"))
    assert choices(listed, ["climb"], {"go"}) == ["look", "take"]
    assert choices(Observation(""), ["climb", "go", "climb"], {"go"}) == ["climb"]
    form = Observation("", ("search[words]",))
    assert choices(form, ["climb"], ()) == ["search[words]"]  # not admissible, so the form itself
    assert choices(form, [], {"search[words]"}) == []
    assert choices(Open("", ("search[words]",)), ["search[a mug]"], ()) == ["search[a mug]"]


@pytest.fixture(scope="module")
def config():
    return load_config("nano", ["model.dtype=float32"])


@pytest.fixture(scope="module")
def renderer(config):
    return load_renderer(str(resolve("nano")), config)


def door(config, renderer, solutions=SOLUTIONS):
    return asyncio.run(play_task(TASK, 0, DoorSeat(), config, renderer, solutions))


def test_a_branch_leaves_the_reference_solution_at_one_turn(config, renderer):
    played = door(config, renderer)
    expert, *branches, copy = played.group.trajectories
    assert [turn.action for turn in expert.turns] == SOLUTIONS["door"] and copy is expert
    assert expert.success and not any(branch.success for branch in branches)
    assert played.group.reference == ("take key", "open door")
    assert [pair.better for pair in played.pairs] == [(0, 0), (0, 1)]
    for number, pair in enumerate(played.pairs, start=1):
        (_, at), (index, same) = pair.turns
        turns = branches[number - 1].turns
        assert (index, same) == (number, at) and turns[at].action == "look"  # the rest is in the solution
        assert [turn.action for turn in turns[:at]] == SOLUTIONS["door"][:at]
        assert turns[at].observation == expert.turns[at].observation


def test_a_branch_that_succeeds_is_dropped(config, renderer):
    """After "look" in place of "climb", a random "open door" still wins."""
    solutions = {"door": ["take key", "climb", "open door"]}
    kept = []
    for seed in range(12):
        with suppress(Unplayable):  # both branches succeeded
            kept += door(replace(config, seed=seed), renderer, solutions).group.trajectories[1:-1]
    assert 0 < len(kept) < 24 and not any(branch.success for branch in kept)


def test_a_task_without_a_pair_says_why(config, renderer):
    with pytest.raises(Unplayable, match="no reference solution"):
        door(config, renderer, {"window": ["climb"]})
    with pytest.raises(Unplayable, match="did not succeed in 1 turns"):
        door(config, renderer, {"door": ["open door"]})
    with pytest.raises(Unplayable, match="no other action"):
        door(config, renderer, {"door": ["look", "take key", "open door"]})


class Rooms:
    """A shard of toy environments, of which the one of the window has no working expert."""

    made: ClassVar[list[Rooms]] = []

    def __init__(self, family, slots, limits, spares):
        self.slots, self.doors = slots, [DoorSeat() for _ in range(slots)]
        self.made.append(self)

    async def reference(self, lease, task):
        if task.id == "window":
            raise EnvError("the expert took longer than 60 s")
        return SOLUTIONS.get(task.id)

    async def reset(self, lease, task):
        return await self.doors[lease.slot].reset(task)

    async def step(self, lease, action):
        return await self.doors[lease.slot].step(action)

    async def finish(self, lease):
        return await self.doors[lease.slot].finish()

    async def close(self):
        pass


def test_a_failed_expert_is_told_as_it_failed(config, renderer, monkeypatch):
    monkeypatch.setattr(play, "Shard", Rooms)
    tasks = [TASK, OTHER, replace(TASK, id="wall")]
    counted = []
    played, left = asyncio.run(play.play_tasks(None, config, renderer, tasks, counted.append))
    assert [one.group.task.id for one in played] == ["door"] and counted == [1, 2, 3]
    assert left == {"window": "the expert took longer than 60 s", "wall": "it has no reference solution"}


@pytest.mark.parametrize(("slots", "cores", "seats"), [(1, 8, 1), (8, 2, 2), (8, 8, 3)])
def test_seats_are_bounded_by_slots_cores_and_tasks(config, renderer, monkeypatch, slots, cores, seats):
    monkeypatch.setattr(play, "Shard", Rooms)
    monkeypatch.setattr(play.os, "sched_getaffinity", lambda _: set(range(cores)))
    config = replace(config, env=replace(config.env, slots=slots))
    asyncio.run(play.play_tasks(None, config, renderer, [OTHER] * 3, lambda _: None))
    assert Rooms.made[-1].slots == seats


def test_pairs_of_recorded_rollouts_are_actions_of_unequal_outcome(tmp_path):
    out = make_run(tmp_path / "run")
    [played], left, origin = recorded_groups(out, 4)
    assert left == {} and origin == "rollouts of run on 1 tasks"
    # In the first state "take key" led to success and "look" to failure; no other state was met twice.
    assert played.pairs == (Pair((0, 0), (1, 0)),)
    won, lost = played.group.trajectories
    assert recorded_pairs(Group(0, TASK, (lost, won))) == [Pair((1, 0), (0, 0))]
    assert recorded_pairs(Group(0, TASK, (lost, lost))) == [] == recorded_pairs(Group(0, TASK, (won, won)))
    assert recorded_pairs(played.group, most=0) == []


def test_the_control_shows_both_actions_the_same_hint_by_turns():
    pairs = [Pair((0, 0), (1, 0)), Pair((0, 2), (2, 2))]
    own = {at: "own" for pair in pairs for at in pair.turns}
    assert foreign(pairs, own, ["good", "bad"], shift=0) == {
        (0, 0): "good", (1, 0): "good", (0, 2): "bad", (2, 2): "bad"
    }  # fmt: skip
    assert foreign(pairs[:1], own, ["good", "bad"], shift=1) == {(0, 0): "bad", (1, 0): "bad"}
    assert foreign(pairs[1:], {}, ["good", "bad"], shift=0) == {} == foreign(pairs, own, [], shift=0)


def test_the_control_is_of_the_next_task_that_has_hints():
    def hinted(task, *texts):
        own = {(0, n): text for n, text in enumerate(texts)}
        return Hinted(Played(Group(0, replace(TASK, id=task), ()), ()), (own,))

    tasks = [hinted("a", "1"), hinted("a", "2"), hinted("b"), hinted("c", "3", "4")]
    assert of_another_task(tasks, 0, 0) == ["3", "4"]
    assert of_another_task(tasks, 3, 0) == ["1"]
    assert of_another_task(tasks[:2], 0, 0) == []


def test_tokens_whose_weight_is_clipped(config):
    # Half of the better action's tokens gain more than ε = 0.2 allows, half of the worse one's lose more.
    gaps = [np.array([log(1.1), log(1.5)]), np.array([log(1 / 1.1), log(1 / 1.5)])]
    assert clipped_share(make_signal(config.signal), gaps) == 0.5
    assert clipped_share(make_signal(config.signal), [-gaps[1], gaps[1] * 0]) == 0.25
    assert clipped_share(make_signal(load_config("nano", ["method=hero_environment"]).signal), gaps) is None


def test_what_is_probed(config):
    assert [one.summary for one in feedbacks(config, every=False)] == ["immediate, per step"]
    every = [one.summary for one in feedbacks(config, every=True)]
    assert every[0] == "immediate, per step" and len(every) == len(set(every)) == 10
    assert {"immediate, per anchor", "reference, per step", "skills, per step"} < set(every)
    assert not any("judge" in one for one in every)
    without = load_config("nano", ["method=grpo"])
    assert feedbacks(without, every=False) == [] and len(feedbacks(without, every=True)) == 10


class Words:
    """Scores a request by what its hint says, and counts how many tokens it read before."""

    context = 1000

    def __init__(self, renderer):
        self.renderer, self.asked = renderer, []

    async def score(self, sequences, requests, what):
        self.asked += requests
        scores = {"win": 0.0, "Nothing": -3.0}
        return [self.one(request, scores) for request in requests], []

    def one(self, request, scores):
        said = self.renderer.decode(request.tail[: request.hint])
        value = next((score for word, score in scores.items() if word in said), -1.0 - bool(request.hint))
        return Scored(np.full(len(request.span), value, np.float32), np.zeros((0, 0), np.float32))


def test_scores_go_to_their_pair_and_condition(config, renderer):
    """The door's hints: taking the key wins nothing yet, opening it wins, looking does nothing."""
    scorer, tasks = Words(renderer), [door(config, renderer)]
    tasks.append(replace(tasks[0], group=replace(tasks[0].group, task=OTHER)))
    reader = Reader(config, renderer, scorer, feedbacks(config, every=False))
    hinted = [asyncio.run(reader.hints(one)) for one in tasks]
    first, second = asyncio.run(reader.rows(hinted, 0))
    assert first.actions == ("take key", "look") and second.actions == ("open door", "look")
    assert "You hold the key." in first.hints[0] and "Nothing happens." in first.hints[1]
    assert (first.without, second.without) == ((-1.0, -1.0), (-1.0, -1.0))
    assert (first.shown, second.shown) == ((-2.0, -3.0), (0.0, -3.0))
    # Hints of the other task, by turns: its first says that the key is held, its second that nothing happens.
    assert (first.other, second.other) == ((-2.0, -2.0), (-3.0, -3.0))
    # Contexts are read once: all requests are on the expert's sequence.
    assert {(one.trajectory, one.sequence) for one in scorer.asked} == {(0, 0)}


def test_a_context_that_differs_is_read_where_it_is(config, renderer):
    one = door(config, renderer)
    limits, texts = ContextLimits(64, 1000), {(1, 0): "", (2, 1): ""}
    requests = build_requests(one.group, texts, renderer.close_ids, renderer.encode, limits)
    assert [request.trajectory for request in rooted(one.group, one.pairs, requests)] == [0, 0]
    # Branch 1 left the solution at its first turn, so its second one has another context.
    other = build_requests(one.group, {(1, 1): ""}, renderer.close_ids, renderer.encode, limits)
    [kept] = rooted(one.group, [Pair((0, 1), (1, 1))], other)
    assert kept.trajectory == 1


def test_a_recorded_run_is_probed_without_actors(tmp_path: Path):
    out = make_run(tmp_path / "run")
    config = settings_of(out, ["feedback.max_tokens=64"])
    asyncio.run(run_probe(config, 4, every=False, run=out))
    folder = out / "probe/nano/serl"
    told = json.loads((folder / "probe.json").read_text())
    assert told["model"] == "nano" and told["feedback"][0]["verdict"] == "too few tasks"
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert rows[0]["actions"] == ["take key", "look"] and rows[0]["other"] is None
    told = (folder / "table.txt").read_text()
    assert "“immediate, per step” in alfworld: no verdict from 1 tasks" in told
    assert "“immediate, per step”, 1 tasks: the better action leads by " in told
    margin = json.loads((folder / "probe.json").read_text())["feedback"][0]["figures"]["margin"]
    assert f"{margin['low']:+.2f} to {margin['high']:+.2f}" in told.partition("likelier: ")[0]
    assert (folder / "probe.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunError, match="already holds a probe"):
        asyncio.run(run_probe(config, 4, every=False, run=out))


def test_what_cannot_be_probed_is_named(tmp_path: Path):
    out = make_run(tmp_path / "run")
    with pytest.raises(RunError, match="no feedback to probe"):
        asyncio.run(run_probe(settings_of(out, ["method=grpo"]), 4, every=False, run=out))
    assert not (out / "probe").exists()
    served = load_config("nano", ["env.name=taubench", "env.user.source=engine", f"out={tmp_path / 'tau'}"])
    with pytest.raises(RunError, match=r"TauBench: env.user.source=scripted or endpoint"):
        asyncio.run(run_probe(served, 4, every=False))


def test_recorded_ids_are_not_read_with_another_tokenizer(tmp_path: Path):
    out, other = make_run(tmp_path / "run"), tmp_path / "other"
    shutil.copytree(resolve("nano"), other)
    config = settings_of(out, [f"model.path={other}"])
    check_tokens(out, other, load_renderer(str(other), config), config)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunError, match=r"are token ids of .*nano.* set model.path to a model with the run's"):
        asyncio.run(run_probe(config, 4, every=False, run=out))
    shutil.copytree(resolve("nano"), other, dirs_exist_ok=True)
    template = other / "chat_template.jinja"
    spaced = template.read_text().replace("message['role']", "' ' + message['role']")
    template.write_text(spaced.replace("assistant", " assistant"))
    with pytest.raises(RunError, match="another meaning"):
        asyncio.run(run_probe(config, 4, every=False, run=out))
    (out / "config.yaml").write_text(render(replace(config, model=replace(config.model, path="gone/gone"))))
    with pytest.raises(RunError, match=r"a model that is gone: model.path = 'gone/gone'"):
        check_tokens(out, other, load_renderer(str(other), config), config)


def test_anchors_without_states_are_named(config, renderer, monkeypatch, tmp_path: Path):
    one = door(config, renderer)
    expert = one.group.trajectories[0]
    turns = [replace(turn, observation=replace(turn.observation, state_key=None)) for turn in expert.turns]
    blind = [replace(one, group=replace(one.group, trajectories=(replace(expert, turns=tuple(turns)),)))]
    every = feedbacks(config, every=True)
    assert with_states(every, [one]) == (every, [])
    kept, [note] = with_states(every, blind)
    assert [own.granularity for own in kept] == ["step"] * len(kept) and len(kept) < len(every)
    assert (
        "left out: successful sibling, per anchor; immediate, per anchor; " in note and "no state_key" in note
    )
    assert with_states(kept, blind) == (kept, [])

    async def played(*_):
        return blind, {}, "toys"

    monkeypatch.setattr(command, "_play", played)
    anchored = load_config("nano", ["feedback.granularity=anchor", f"out={tmp_path}"])
    with pytest.raises(RunError, match=r"nothing to probe.*feedback.granularity=step"):
        asyncio.run(run_probe(anchored, 4, every=False))
    assert not (tmp_path / "probe").exists()


def test_an_adapter_is_read_as_its_checkpoint_merged_it(tmp_path: Path):
    config = load_config("nano", ["method=hint_sd", "model.dtype=bfloat16"])
    assert whole(config, tmp_path).model.dtype == "bfloat16"
    (tmp_path / "adapter").mkdir()
    read = whole(config, tmp_path)
    assert (read.model.dtype, read.learner.lora.rank) == ("float32", 0)


def test_models_are_named_as_they_are_given(tmp_path: Path):
    model = tmp_path / "run/checkpoints/step-00000004/model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    (model.parent / "driver.json").write_text(json.dumps({"step": 4}))
    assert named_model(str(tmp_path / "run")) == ("run/step-00000004", model)
    assert named_model(str(model.parent)) == ("run/step-00000004", model)
    assert named_model("nano") == ("nano", resolve("nano"))
