"""First prompts are measured during the warm start, and tasks whose prompt is too long are set aside.

It costs a reset of each task that the run will train on, in the order in which they will come, by half of the
environment slots, and ends after `SECONDS`. What was not measured by then, or failed, is left to training,
where a task whose prompt is too long is set aside when it comes. `OUT/first_prompts.json` keeps the lengths:
no task is measured twice.
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
SECONDS = 60.0  # that measuring may take: less than a warm start, if there is one


@dataclass(frozen=True)
class Measured:
    """Tokens of first prompts, by task id."""

    tokens: Mapping[str, int]
    failed: int = 0  # tasks whose environment failed


async def set_long_ones_aside(run: Run) -> None:
    """Measure the tasks to come when a run begins, and set aside those whose prompt is too long.

    Raises:
        RunError: too many are. DataMissing: the environment's data are missing.
    """
    config, began = run.config, monotonic()
    key = fingerprint(config, run.manifest.digest)
    known = _read(run.out / FILE, key)
    groups = max(0, config.steps - run.state.step) * config.rollout.num_groups
    coming = [] if run.state.warm_started else run.sampler.coming()[:groups]
    missing = [task for task in coming if task.id not in known]

    async def ask(task: TaskSpec) -> int:
        what = f"measuring the first prompt of {task.id}"
        tokens: int = await ask_worker(run.actors.worker, config, "first_prompt", task, what=what)
        return tokens

    measured = await measure_first_prompts(missing, ask, at_once=max(1, config.env.at_once // 2))
    lengths = {**known, **measured.tokens}
    context, most, step, time = config.model.max_length, config.rollout.max_tokens, run.state.step, now()
    long = [
        SetAside(task.id, "prompt", too_long(task, lengths[task.id], context), 0, step, time)
        for task in run.manifest.train
        if task.id in lengths and task.id not in run.set_aside.ids
        if not leaves_room(lengths[task.id], context, most)
    ]
    if missing:
        _write(run.out / FILE, key, lengths)
        run.view.say(prompts_summary(measured, len(missing), len(long), monotonic() - began))
    elif long:
        run.view.say(f"first prompts as measured before: {len(long)} too long, set aside")
    if long:
        run.set_aside.add(*long)


async def measure_first_prompts(
    tasks: Iterable[TaskSpec],
    ask: Callable[[TaskSpec], Awaitable[int]],
    at_once: int,
    seconds: float = SECONDS,
) -> Measured:
    """Ask for the length of each task's first prompt, `at_once` at a time, for at most `seconds`."""
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
    return Measured(tokens, len(failed))


def prompts_summary(measured: Measured, tasks: int, long: int, seconds: float) -> str:
    """What was measured, in a line."""
    count = len(measured.tokens)
    found = f"{long} too long, set aside" if long else "all leave room for a response"
    late = tasks - count - measured.failed
    left = [f"{measured.failed} failed"] * bool(measured.failed) + [f"{late} were not reached"] * bool(late)
    rest = f" ({' and '.join(left)}: left to training)" if left else ""
    return f"measured {count} first prompts in {seconds:.0f} s: {found}{rest}"


def fingerprint(config: Config, digest: str) -> str:
    """What the lengths depend on: tasks, environment, prompt and tokenizer."""
    parts = [digest, asdict(config.env), asdict(config.prompt), config.model.path]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Path, key: str) -> dict[str, int]:
    """What `_write` wrote; empty if it wrote nothing, or about other tasks or prompts."""
    try:
        held: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    tokens: dict[str, int] = held["tokens"] if held.get("of") == key else {}
    return tokens


def _write(file: Path, key: str, tokens: Mapping[str, int]) -> None:
    """Keep the lengths for a run that resumes."""
    atomic_write(file, json.dumps({"of": key, "tokens": tokens}, indent=1))
