"""The first prompts of all training tasks are measured beside the warm start, and those too long set aside.

It costs a reset of each task, by half of the environment slots, and ends after `SECONDS`. What was not
measured by then, or failed, is left to training, where a task whose prompt is too long is set aside when it
comes. `OUT/first_prompts.json` keeps the lengths for a run that resumes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

from hindsight.cluster.run import Run
from hindsight.cluster.set_aside import SetAside, now
from hindsight.configs.schema import Config
from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.runtime.files import atomic_write
from hindsight.envs.runtime.remote import AnswerLost, RemoteTimeout
from hindsight.envs.tasks import TaskSpec
from hindsight.rollout.episode import leaves_room, too_long
from hindsight.rollout.worker import ask_worker

FILE = "first_prompts.json"  # in the run's folder
SECONDS = 60.0  # that measuring may take; a warm start takes longer, so it costs a run no time


@dataclass(frozen=True)
class Lengths:
    """Tokens of first prompts, by task id."""

    tokens: Mapping[str, int]
    failed: int = 0  # tasks whose environment failed

    def too_long(self, tasks: Iterable[TaskSpec], config: Config) -> list[TaskSpec]:
        """Those that leave no room for a response."""
        context, most = config.model.max_length, config.rollout.max_tokens
        known = [task for task in tasks if task.id in self.tokens]
        return [task for task in known if not leaves_room(self.tokens[task.id], context, most)]


async def set_long_ones_aside(run: Run) -> None:
    """Measure the training tasks, unless this run has before, and set aside those whose prompt is too long.

    Raises:
        RunError: too many are. DataMissing: the environment's data are missing.
    """
    config, tasks = run.config, run.manifest.train
    if run.state.step >= config.steps:
        return  # nothing is left to train
    key = fingerprint(config, run.manifest.digest)
    lengths, began = read(run.out / FILE, key), monotonic()
    measured = lengths is None
    if lengths is None:

        async def ask(task: TaskSpec) -> int:
            what = f"measuring the first prompt of {task.id}"
            tokens: int = await ask_worker(run.actors.worker, config, "first_prompt", task, what=what)
            return tokens

        lengths = await measure(tasks, ask, at_once=max(1, config.env.at_once // 2))
        write(run.out / FILE, key, lengths)
    long = [task for task in lengths.too_long(tasks, config) if task.id not in run.set_aside.ids]
    if measured:
        run.view.say(summary(lengths, len(tasks), len(long), monotonic() - began))
    elif long:
        run.view.say(f"{len(long)} first prompts are too long, as measured before: set aside")
    if long:
        context, step, time = config.model.max_length, run.state.step, now()
        why = [too_long(task, lengths.tokens[task.id], context) for task in long]
        pairs = zip(long, why, strict=True)
        run.set_aside.add(*(SetAside(task.id, "prompt", reason, 0, step, time) for task, reason in pairs))


async def measure(
    tasks: Iterable[TaskSpec],
    ask: Callable[[TaskSpec], Awaitable[int]],
    at_once: int,
    seconds: float = SECONDS,
) -> Lengths:
    """Ask for the length of each task's first prompt, so many at once, for so many seconds at most."""
    tokens, failed, waiting = dict[str, int](), list[str](), iter(tasks)

    async def work() -> None:
        for task in waiting:
            try:
                tokens[task.id] = await ask(task)
            except DataMissing:
                raise
            except (EnvError, RemoteTimeout, AnswerLost):
                failed.append(task.id)

    working = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        done, _ = await asyncio.wait(working, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for one in done:
            one.result()
    finally:
        for one in working:
            one.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    return Lengths(tokens, len(failed))


def summary(lengths: Lengths, tasks: int, long: int, seconds: float) -> str:
    """What was measured, in a line."""
    count = len(lengths.tokens)
    found = f"{long} too long, set aside" if long else "all leave room for a response"
    late = tasks - count - lengths.failed
    left = [f"{lengths.failed} failed"] * bool(lengths.failed) + [f"{late} were not reached"] * bool(late)
    rest = f" ({' and '.join(left)}: left to training)" if left else ""
    return f"measured {count} first prompts in {seconds:.0f} s: {found}{rest}"


def fingerprint(config: Config, digest: str) -> str:
    """What the lengths depend on: tasks, environment, prompt and tokenizer."""
    parts = [digest, asdict(config.env), asdict(config.prompt), config.model.path]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read(file: Path, key: str) -> Lengths | None:
    """What `write` wrote; None: nothing, or about other tasks or prompts."""
    try:
        held: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return Lengths(held["tokens"]) if held.get("of") == key else None


def write(file: Path, key: str, lengths: Lengths) -> None:
    """Keep the lengths for a run that resumes."""
    atomic_write(file, json.dumps({"of": key, "tokens": dict(lengths.tokens)}, indent=1))
