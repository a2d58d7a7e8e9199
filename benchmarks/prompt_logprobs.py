"""Seconds to score action spans: the teacher, and vLLM's `prompt_logprobs` for the same contexts.

    python -m benchmarks.prompt_logprobs MODEL [--trajectories 4] [--turns 20] [--tokens 1200] [--rounds 3]

vLLM gets each context as a prompt and returns log-probs at every position; it reads no prefix from its cache
for such a request. Both use the same threads, in turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.isolation import spread
from benchmarks.ratio import ratio_line
from benchmarks.teacher import context_ids, synthetic_rollout
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from hindsight.rollout.models import resolve
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.scorer import SpanScorer


def load_vllm(model: str, dtype: str, longest: int, budget: int, kv_cache_gib: float) -> Any:
    """vLLM's engine for the model, in this process."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, so one set of threads
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import LLM
    from vllm.platforms import current_platform

    memory = {"kv_cache_memory_bytes": int(kv_cache_gib * 2**30)} if current_platform.is_cpu() else {}
    return LLM(
        model,
        dtype=dtype,  # type: ignore[arg-type] # a string of a few
        max_model_len=longest,
        max_num_batched_tokens=budget,
        enforce_eager=True,
        disable_log_stats=True,
        **memory,  # type: ignore[arg-type]
    )


def by_vllm(llm: Any, requests: Sequence[ScoreRequest], contexts: list[list[int]]) -> list[np.ndarray]:
    """The log-probs of each request's span, from those of the whole prompt."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in contexts], sampling, use_tqdm=False)
    found = []
    for request, ids, answer in zip(requests, contexts, answers, strict=True):
        start, end = request.cut + request.span.start, request.cut + request.span.end
        found.append(np.array([answer.prompt_logprobs[at][ids[at]].logprob for at in range(start, end)]))
    return found


def main(
    model: Annotated[str, typer.Argument(help="name or folder of a causal LM")],
    trajectories: int = 4,
    turns: int = 20,
    tokens: int = 1200,
    rounds: int = 3,
    budget: int = 8192,
    dtype: str = "bfloat16",
    kv_cache_gib: float = 1.0,
) -> None:
    """Compare both on synthetic full-history trajectories."""
    model = str(resolve(model))
    llm = load_vllm(model, dtype, tokens + 256, budget, kv_cache_gib)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer = SpanScorer(torch.nn.Module.to(lm, device), budget, temperature=1.0)
    sequences, requests = synthetic_rollout(trajectories, turns, tokens, lm.config.vocab_size)
    contexts = [context_ids(sequences, request)[0].tolist() for request in requests]
    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        "teacher": lambda: [scored.logprobs for scored in scorer.score(sequences, requests)],
        "vLLM": lambda: by_vllm(llm, requests, contexts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gaps = []
    for number in range(rounds + 1):  # the first is not counted
        answers = {}
        for name, score in ways.items():
            began = time.perf_counter()
            answers[name] = np.concatenate(score())
            if number:
                seconds[name].append(time.perf_counter() - began)
        gaps.append(float(np.abs(answers["teacher"] - answers["vLLM"]).max()))

    title = f"{len(requests)} spans, {trajectories} trajectories of {tokens} tokens, {dtype} on {device}"
    table = Table("way", "seconds, median [least, most]", title=title)
    for name, own in seconds.items():
        table.add_row(name, spread(own, ".2f"))
    table.add_row("largest difference of a log-prob", f"{max(gaps):.4f}")
    Console().print(table)
    ratios = [vllm / own for own, vllm in zip(seconds["teacher"], seconds["vLLM"], strict=True)]
    print(ratio_line("vLLM's prompt_logprobs ÷ teacher spans", ratios))


if __name__ == "__main__":
    typer.run(main)
