"""The parts of `benchmarks.gpu` that run an engine: as an actor next to learner and teacher, and alone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from benchmarks.gpu_parts import SHAPES, Run, samples, settings

Generate = Callable[[np.ndarray, Any], Awaitable[Any]]


async def burst(run: Run, label: str, generate: Generate, count: int) -> None:
    """Send `count` requests at once; measure seconds and tokens per second."""
    from hindsight.rollout.types import Sampling

    draw = np.random.default_rng(1)
    length, new = (64, 16) if run.small else (512, 256)
    prompts = [
        draw.integers(100, SHAPES[run.shape("0.5b")][5], length).astype(np.int32) for _ in range(count)
    ]
    began = time.perf_counter()
    made = await asyncio.gather(
        *(generate(ids, Sampling(1.0, new, seed=index)) for index, ids in enumerate(prompts))
    )
    seconds, tokens = time.perf_counter() - began, sum(len(own.ids) for own in made)
    rate = round(tokens / seconds)
    run.emit(engine=label, requests=count, seconds=round(seconds, 2), tokens=tokens, tokens_per_s=rate)


def engine(run: Run) -> None:
    """The engine's actor; then learner and teacher next to it, and verified weight syncs, part by part."""
    import ray

    from hindsight.cluster.machines import connect
    from hindsight.learner.group import LearnerGroup
    from hindsight.rollout.engine import Engine, engine_env
    from hindsight.teacher.scorer import TeacherScorer, teacher_env

    folder = run.folder("0.5b")
    config, many = settings(run, folder), 4 if run.small else 128
    connect(None, dashboard_port=0)
    gpu = ray.cluster_resources().get("GPU", 0.0) > 0

    def place(share: float, env: dict[str, str], **own: Any) -> dict[str, Any]:
        return {"num_gpus": share * gpu, "num_cpus": 0.5, "runtime_env": {"env_vars": env}, **own}

    async def go() -> None:
        began = time.perf_counter()
        actor: Any = ray.remote(Engine).options(**place(0.4, engine_env(config), max_concurrency=4096))
        handle: Any = actor.remote(folder, config, 0)
        run.emit(ready=await handle.ready.remote(), wall_s=round(time.perf_counter() - began, 1))
        for label, count in (("first", many), ("second", many), ("one request", 1)):
            await burst(run, label, handle.generate.remote, count)
        learning = LearnerGroup(config, folder, [place(0.3, {})])
        run.emit(learner=await learning.start())
        teacher: Any = ray.remote(TeacherScorer).options(**place(0.2, teacher_env(config)))
        scorer = teacher.remote(folder, config, 1.0)
        run.emit(teacher=await scorer.ready.remote())
        for version in (1, 2, 3):
            await publish(run, version, handle, learning, scorer)
        await burst(run, "after the syncs", handle.generate.remote, many)
        learning.stop()

    asyncio.run(go())
    ray.shutdown()


async def publish(run: Run, version: int, handle: Any, learning: Any, scorer: Any) -> None:
    """An update, and its weights to engine and teacher."""
    from hindsight.learner.weight_sync import Canary
    from hindsight.learner.weight_sync_store import sync_weights

    vocabulary, limit = SHAPES[run.shape("0.5b")][5], 120.0
    stats = await learning.update({"policy": samples(8, 64 if run.small else 512, vocabulary)}, 0.5, 1e-5)
    times = [time.perf_counter()]
    weights = await learning.export(version)
    times.append(time.perf_counter())
    ids = np.arange(100, 300, dtype=np.int32)
    canary = Canary(ids, await learning.score(ids), tolerance=0.25)
    times.append(time.perf_counter())
    report = await sync_weights([handle], weights, canary, limit, limit)
    times.append(time.perf_counter())
    await scorer.load_weights.remote(weights)
    times.append(time.perf_counter())
    names = ("export_s", "score_s", "sync_s", "teacher_s")
    parts = {name: round(end - start, 2) for name, start, end in zip(names, times, times[1:], strict=False)}
    run.emit(version=version, gap=report.logprob_gap, update_s=round(stats["seconds"], 2), **parts)


def raw(run: Run) -> None:
    """The same engine in this process: what the actor costs; then vLLM asked for nothing but the tokens."""
    from hindsight.rollout.engine import Engine, engine_env

    folder = run.folder("0.5b")
    config = settings(run, folder, f"rollout.compile={run.part == 'graphs'}")
    # As in a Ray actor: a process forked after torch has looked for a GPU could not use it.
    os.environ.update(engine_env(config) | {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    many = 4 if run.small else 128

    async def go() -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        began = time.perf_counter()
        made = Engine(folder, config, 0)
        await made.ready()
        run.emit(start_s=round(time.perf_counter() - began, 1))
        for label, count in (("first", many), ("second", many), ("one request", 1)):
            await burst(run, label, made.generate, count)
        numbers = iter(range(10**6))

        async def plain(ids: np.ndarray, sampling: Any) -> Any:
            params = SamplingParams(
                temperature=1.0,
                max_tokens=sampling.max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = TokensPrompt(prompt_token_ids=ids.tolist())
            async for output in made.llm.generate(prompt, params, f"plain {next(numbers)}"):
                last = output
            return SimpleNamespace(ids=last.outputs[0].token_ids)

        for label in ("vLLM alone, first", "vLLM alone, second"):
            await burst(run, label, plain, many)
        made.llm.shutdown()

    asyncio.run(go())
