"""Expert and random play: in a state of a reference solution, its action and one that is not part of it.

    expert      a ─ b ─ c ─ d   success         pair at turn 2: b is better, x is worse
    branch      a ─ x ─ ? ─ ?   failure         ?: random actions
    expert's copy                               stands for another success, as a sibling

Episodes run in processes of their own, as in training, and are rendered by the same code.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import numpy as np

from hindsight.cluster.probe.pairs import PAIRS, Pair
from hindsight.configs.schema import Config
from hindsight.envs.base import DataMissing, EnvError, EnvFamily, Observation, StepResult, Verdict
from hindsight.envs.runtime.shard import Lease, Shard, SlotLimits
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.episode import EpisodeLimits, PromptTooLong, run_episode
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import Generation, Group, Sampling, Trajectory

Choose = Callable[[int, Observation], str]  # number of the turn, from 0, and what it sees -> action
T = TypeVar("T")


@dataclass(frozen=True)
class Played:
    """A task's group and its pairs."""

    group: Group
    pairs: tuple[Pair, ...]


class Unplayable(ValueError):
    """A task gives no pair; the message says why."""


@dataclass
class Seat:
    """An environment process as `run_episode` wants it; it remembers what the agent sees."""

    shard: Shard
    lease: Lease
    seen: Observation = field(default_factory=lambda: Observation(""))

    async def reset(self, task: TaskSpec) -> Observation:
        """As `TextEnv.reset`."""
        self.seen = await self.shard.reset(self.lease, task)
        return self.seen

    async def step(self, action: str) -> StepResult:
        """As `TextEnv.step`."""
        result = await self.shard.step(self.lease, action)
        self.seen = result.observation
        return result

    async def finish(self) -> Verdict | None:
        """As `TextEnv.finish`."""
        return await self.shard.finish(self.lease)

    async def reference(self, task: TaskSpec) -> list[str]:
        """A solution of the task; empty if there is none."""
        return await self.shard.reference(self.lease, task) or []


async def play_tasks(
    family: EnvFamily,
    config: Config,
    renderer: Renderer,
    tasks: Sequence[TaskSpec],
    played: Callable[[int], None],
) -> tuple[list[Played], dict[str, str]]:
    """Play every task, one per core at a time, and at most `env.slots` at once.

    Also returns why some of them gave no pair, by task.

    Args:
        played: called with the number of finished tasks.

    Raises:
        DataMissing: the environment's data are missing.
    """
    seats = min(config.env.slots, len(os.sched_getaffinity(0)), len(tasks))
    shard = Shard(family, seats, SlotLimits.of(config.env), spares=0)
    done = 0

    async def solve(seat: Seat, place: int) -> list[str]:
        return await seat.reference(tasks[place])

    async def play(seat: Seat, place: int) -> Played:
        nonlocal done
        try:
            if isinstance(failure := solved[place], EnvError):
                raise failure
            return await play_task(tasks[place], place, seat, config, renderer, solutions)
        finally:
            done += 1
            played(done)

    try:
        everything = [Seat(shard, Lease(0, number, 0)) for number in range(seats)]
        solved = await _each(everything, range(len(tasks)), solve)
        solutions = {tasks[place].id: own for place, own in solved.items() if isinstance(own, list)}
        found = await _each(everything, range(len(tasks)), play)
    finally:
        await shard.close()
    kept = [one for _, one in sorted(found.items()) if isinstance(one, Played)]
    left = {tasks[place].id: str(one) for place, one in sorted(found.items()) if isinstance(one, Exception)}
    return kept, left


async def play_task(
    task: TaskSpec,
    ordinal: int,
    seat: Seat,
    config: Config,
    renderer: Renderer,
    solutions: dict[str, list[str]],
) -> Played:
    """The expert's trajectory, branches from it, and its copy.

    Args:
        solutions: reference solutions by task: actions of other tasks are drawn where none are listed.

    Raises:
        Unplayable: the task gives no pair. EnvError: infrastructure failed.
    """
    actions, rng = solutions.get(task.id, []), Random(f"{config.seed} {task.id}")
    if not actions:
        raise Unplayable("it has no reference solution")
    others = [action for other, own in solutions.items() if other != task.id for action in own]
    expert = await run_script(task, seat, config, renderer, len(actions), lambda turn, _: actions[turn])
    if not expert.success:
        raise Unplayable(
            f"its reference solution of {len(actions)} actions did not succeed in {len(expert.turns)} turns "
            f"(env.max_turns = {config.env.max_turns}, model.max_length = {renderer.context})"
        )

    def wrong(number: int) -> list[str]:
        return choices(expert.turns[number].observation, others, actions)

    def deviate(at: int) -> Choose:
        def choose(turn: int, seen: Observation) -> str:
            if turn < at:
                return actions[turn]
            return rng.choice(wrong(at) if turn == at else choices(seen, others, ()) or actions)

        return choose

    branches: list[Trajectory] = []
    pairs: list[Pair] = []
    turns = [number for number in range(len(expert.turns)) if wrong(number)]
    for at in sorted(rng.sample(turns, min(PAIRS, len(turns)))):
        branch = await run_script(task, seat, config, renderer, len(expert.turns), deviate(at))
        if not branch.success and len(branch.turns) > at:
            branches.append(branch)
            pairs.append(Pair((0, at), (len(branches), at)))
    if not pairs:
        raise Unplayable("no other action was found that did not solve it, too")
    return Played(Group(ordinal, task, (expert, *branches, expert), reference=tuple(actions)), tuple(pairs))


def choices(seen: Observation, others: Sequence[str], excluded: Collection[str]) -> list[str]:
    """Actions that a random agent may take here.

    They are the listed ones. Where none is listed, or a single one, which may be a form to fill in, they are
    those of other tasks that are admissible here, if there are any.
    """
    listed = [action for action in seen.actions if action not in excluded]
    if len(seen.actions) > 1:
        return listed
    free = (action for action in others if action not in excluded and seen.admits(action))
    return list(dict.fromkeys(free)) or listed


async def run_script(
    task: TaskSpec, seat: Seat, config: Config, renderer: Renderer, turns: int, choose: Choose
) -> Trajectory:
    """An episode of at most `turns` turns whose actions are chosen, not sampled.

    Raises:
        Unplayable: its first prompt does not fit. EnvError: infrastructure failed.
    """
    taken = 0

    async def generate(context: np.ndarray, sampling: Sampling) -> Generation:
        nonlocal taken
        ids = renderer.respond(choose(taken, seat.seen))
        taken += 1
        return Generation(ids, np.full(len(ids), np.nan, np.float32), "stop", np.full(len(ids), -1, np.int32))

    limits = EpisodeLimits(turns, config.rollout.max_tokens)
    try:
        return await run_episode(task, seat, generate, renderer, limits, temperature=1.0, seed=0)
    except PromptTooLong as error:
        raise Unplayable(str(error)) from error


async def _each(
    seats: Sequence[Seat], places: Sequence[int], work: Callable[[Seat, int], Awaitable[T]]
) -> dict[int, T | Unplayable | EnvError]:
    """What the work gave for each place, or why it did not."""
    queue, found = list(reversed(places)), dict[int, T | Unplayable | EnvError]()

    async def sit(seat: Seat) -> None:
        while queue:
            place = queue.pop()
            try:
                found[place] = await work(seat, place)
            except DataMissing:
                raise
            except (Unplayable, EnvError) as error:
                found[place] = error

    await asyncio.gather(*map(sit, seats))
    return found
