"""A run's folder with one recorded step of toy episodes, made without actors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from hindsight.cluster.report.pieces import Pieces
from hindsight.cluster.report.record import PolicyLoss
from hindsight.cluster.report.recorder import Recorder
from hindsight.configs.check import render
from hindsight.configs.load import load_config
from hindsight.configs.method import Signal
from hindsight.envs.base import Observation, StepResult
from hindsight.envs.tasks import TaskSpec
from hindsight.learner.samples import to_samples
from hindsight.learner.signals import NoSignal
from hindsight.rollout.episode import EpisodeLimits, run_episode
from hindsight.rollout.models import resolve
from hindsight.rollout.render import load_renderer
from hindsight.rollout.types import Generation, Group

TASK = TaskSpec("door", "toy", "open", "train")
ROOM = Observation("A dark room. Your task is to: open the door.", ("look", "open door", "take key"), "room")
WON = ["<action>take key</action>", "<action>open door</action>"]
LOST = ["<action>look</action>", "no action", "<action>open door</action>"]


class Door:
    """It opens after the key was taken."""

    key = False

    async def reset(self, task):
        return ROOM

    async def step(self, action):
        won = action == "open door" and self.key
        self.key |= action == "take key"
        text = "You win." if won else "You hold the key." if action == "take key" else "Nothing happens."
        return StepResult(Observation(text, ROOM.actions, text), text, float(won), won, False, won)

    async def finish(self):
        return None


def make_run(out: Path, *overrides: str) -> Path:
    """A group of two episodes, recorded as step 1."""
    config = load_config("nano", ["model.dtype=float32", f"out={out}", *overrides])
    renderer = load_renderer(str(resolve("nano")), config)

    def play(texts):
        said = iter(texts)

        async def generate(ids, sampling):
            sampled = np.append(renderer.encode(next(said)), renderer.end_id).astype(np.int32)
            return Generation(
                sampled, np.full(len(sampled), -0.5, np.float32), "stop", np.full(len(sampled), 1)
            )

        limits = EpisodeLimits(len(texts), 64)
        return asyncio.run(run_episode(TASK, Door(), generate, renderer, limits, 1.0, seed=7))

    group = to_samples(Group(0, TASK, (play(WON), play(LOST))))
    for sample in group.samples:
        sample.lags = np.zeros(len(sample.positions), np.int32)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(render(config))
    loss = PolicyLoss([], NoSignal(Signal()), 0.0, config.loss.aggregation)
    Recorder(out, Pieces(lambda _: b"x")).step(1, [group], [], loss)
    return out
