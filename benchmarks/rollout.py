"""Hindsight's rollout against vLLM alone and against lock-step rollouts: the same requests and engine.

    python -m benchmarks.rollout [--model nano] [--turns 20] [--episodes 32] [--slots 16] [--rounds 3]

Each round runs episodes three times, one way after the other:
    hindsight   worker, environment shard and its processes, prompts, engine, all through Ray
    raw vLLM    an exact replay inside the engine's process, on its AsyncLLM: the prompts, seeds and lengths
                that the first way recorded, each episode's next request when its last is answered; there is
                no environment
    lock-step   the same replay, but turn by turn: all episodes of a batch wait for the slowest answer and the
                slowest environment, and a batch ends with its longest episode

`benchmarks.drawn` draws turns, outcomes and times of the environment; lengths of responses are log-normal.
The prefix cache is empty at the begin of each. Ratios are of speeds: above 1 the first is faster.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import typer
from benchmarks.drawn import TASKS, step_seconds
from benchmarks.isolation import spread
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.table import Table

from hindsight.cluster.machines import connect
from hindsight.cluster.start import variables
from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.envs.registry import make_family
from hindsight.envs.runtime.pool import start_pool
from hindsight.rollout.engine import Engine, engine_env
from hindsight.rollout.models import resolve
from hindsight.rollout.types import Generation, Sampling, Trajectory
from hindsight.rollout.worker import Worker

SHORTEST, MEDIAN, SPREAD = 4, 10, 0.6  # tokens of a response: least, median, standard deviation of the log


def response_length(seed: int, most: int) -> int:
    """How many tokens a response has."""
    drawn = MEDIAN * random.Random(seed).lognormvariate(0.0, SPREAD)
    return max(SHORTEST, min(most, round(drawn)))


@dataclass(frozen=True)
class Request:
    """One turn, as it was asked of the engine."""

    ids: list[int]
    tokens: int
    seed: int | None
    environment: float  # seconds of the step after it


class Replaying(Engine):
    """An engine that draws the length of each response, and answers recorded requests from within."""

    def __init__(self, model: str, config: Config, index: int) -> None:
        super().__init__(model, config, index)
        self.seeds: dict[tuple[int, ...], int | None] = {}  # by prompt: each task has its own

    async def generate(
        self, prompt_ids: np.ndarray, sampling: Sampling, seconds: float | None = None
    ) -> Generation:
        self.seeds[tuple(prompt_ids.tolist())] = sampling.seed
        tokens = response_length(sampling.seed or 0, sampling.max_tokens)
        return await super().generate(prompt_ids, replace(sampling, max_tokens=tokens), seconds)

    async def empty(self) -> None:
        """Begin without cached prefixes."""
        await self.llm.reset_prefix_cache()

    async def recorded(self, played: Sequence[Trajectory]) -> list[list[Request]]:
        """The requests of episodes."""
        found = []
        for one in played:
            turns = []
            for number, turn in enumerate(one.turns):
                ids = one.sequences[turn.sequence].ids[: turn.start].tolist()
                seconds = step_seconds(one.task.id, number + 1)
                turns.append(Request(ids, turn.end - turn.start, self.seeds[tuple(ids)], seconds))
            found.append(turns)
        return found

    async def replay(self, episodes: list[list[Request]], slots: int, lock_step: bool) -> float:
        """Seconds to answer all requests of the episodes."""
        began = time.perf_counter()
        if lock_step:
            for at in range(0, len(episodes), slots):
                batch = episodes[at : at + slots]
                for turn in range(max(map(len, batch))):
                    asked = [one[turn] for one in batch if turn < len(one)]
                    await asyncio.gather(*map(self.answer, asked))
                    await asyncio.sleep(max(one.environment for one in asked))
        else:
            free = asyncio.Semaphore(slots)

            async def play(turns: list[Request]) -> None:
                async with free:
                    for one in turns:
                        await self.answer(one)

            await asyncio.gather(*map(play, episodes))
        return time.perf_counter() - began

    async def answer(self, request: Request) -> None:
        """Sample as many tokens as the first time."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=1.0,
            max_tokens=request.tokens,
            ignore_eos=True,
            seed=request.seed,
            logprobs=0,
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        prompt = TokensPrompt(prompt_token_ids=request.ids)
        async for _ in self.llm.generate(prompt, params, str(next(self.requests))):
            pass


async def measure(config: Config, model: str, episodes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    place = {"num_cpus": 0, "max_concurrency": 4096}
    engine: Any = ray.remote(Replaying).options(**place, runtime_env={"env_vars": engine_env(config)})
    engine = engine.remote(model, config, 0)
    family = make_family(config.env)
    environments = start_pool(config, family)
    worker: Any = ray.remote(Worker).options(**place, **variables({}, gpus=0))
    worker = worker.remote(model, config, [engine], environments.shards)
    await environments.ready(config.cluster.start_timeout)
    await engine.ready.remote()
    tasks, slots = family.manifest().train, config.env.slots
    seconds: dict[str, list[float]] = {"hindsight": [], "raw vLLM": [], "lock-step": []}
    for number in range(rounds + 1):  # the first, which warms up, is short
        await engine.empty.remote()
        began = time.perf_counter()
        tried = await asyncio.gather(
            *(
                worker.play.remote(index, number, tasks[index], 1.0, number)
                for index in range(episodes if number else 4)
            )
        )
        spent = [time.perf_counter() - began]
        requests = await engine.recorded.remote([one.outcome for one in tried])
        for lock_step in (False, True):
            await engine.empty.remote()
            spent.append(await engine.replay.remote(requests, slots, lock_step))
        for own, value in zip(seconds.values(), spent, strict=True):
            own += [value] if number else []
    return seconds


def main(
    model: str = "nano",
    turns: int = 20,
    episodes: Annotated[int, typer.Option(max=TASKS)] = 32,
    slots: int = 16,
    rounds: int = 3,
) -> None:
    """Print seconds of each way and the ratios."""
    overrides = [
        *(f"env.name={Path(__file__).with_name('drawn.py')}", "env.kinds=[]", f"env.slots={slots}"),
        *(f"env.max_turns={turns}", f"model.path={model}", "model.max_length=4096"),
        *(f"rollout.max_num_seqs={slots}", "rollout.max_tokens=48", "rollout.kv_cache_gib=1"),
        *("rollout.tensor_parallel=1", "weight_sync.transport=object_store"),  # as a plan would set them
    ]
    config = load_config("nano", overrides)
    connect(None, dashboard_port=0)
    seconds = asyncio.run(measure(config, str(resolve(model)), episodes, rounds))
    ray.shutdown()
    title = f"{episodes} episodes of up to {turns} turns on {slots} slots, {model}, {rounds} rounds"
    table = Table("way", "seconds, median [least, most]", title=title)
    for name, own in seconds.items():
        table.add_row(name, spread(own, ".2f"))
    Console().print(table)
    ours, raw, lock_step = seconds.values()
    print(ratio_line("rollout ÷ raw vLLM", [b / a for a, b in zip(ours, raw, strict=True)]))
    print(ratio_line("free-running ÷ lock-step", [b / a for a, b in zip(ours, lock_step, strict=True)]))


if __name__ == "__main__":
    typer.run(main)
