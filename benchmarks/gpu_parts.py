"""The parts of `benchmarks.gpu` that time the teacher and the learner, outside Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hindsight.configs.schema import Config

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
    "tiny": (128, 256, 2, 2, 1, 2048, True),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "7b/4": (3584, 18944, 7, 28, 4, 152064, False),  # the learner's states of the whole would not fit
}
KERNELS = {  # of a profile, by what their names have
    "attention": r"flash|fmha|attention|softmax_warp",
    "matmul": r"gemm|nvjet|cutlass|cublas|xmma|wgmma|mma_|splitk",
    "copy": r"memcpy|memset|copy",
    "optimizer": r"adam|multi_tensor|norm2|lpnorm",
    "reduce": r"softmax|reduce|cunn",
    "elementwise": r"elementwise|vectorized|unrolled|index|gather|scatter|cat",
}


@dataclass(frozen=True)
class Run:
    """One part's name, size, and where its results go."""

    part: str
    out: Path
    small: bool

    @property
    def device(self) -> str:
        """Of torch: cuda or cpu."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def scratch(self) -> Path:
        """For models and runs, which stay where they are."""
        return Path(tempfile.gettempdir(), "hindsight-gpu")

    def emit(self, **fields: object) -> None:
        """Print a result and append it to gpu.jsonl."""
        line = json.dumps({"part": self.part, "at": round(time.time() % 100_000, 1), **fields}, default=str)
        print(line, flush=True)
        with (self.out / "gpu.jsonl").open("a") as file:
            file.write(f"{line}\n")

    def shape(self, name: str) -> str:
        """The name of the shape that is used for `name`."""
        return "tiny" if self.small else name

    def folder(self, name: str) -> str:
        """A model folder with random weights; another process makes it, so that this one holds no memory."""
        name = self.shape(name)
        folder = self.scratch / re.sub(r"\W", "_", name)
        if not (folder / "config.json").exists():
            command = [sys.executable, "-m", "benchmarks.gpu", "model", "--out", str(self.out)]
            subprocess.run(command, env=os.environ | {"GPU_SHAPE": name}, check=True)
        return str(folder)


def finished() -> None:
    """Wait until the GPU has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak() -> float:
    """The most GPU memory that tensors had since the last call, GiB."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(most, 2)


def make_model(shape: str, device: str) -> Any:
    """A Qwen2 of that shape in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    hidden, inner, layers, heads, kv, vocabulary, tied = SHAPES[shape]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        use_sliding_window=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return made.eval()


def model(run: Run) -> None:
    """Write the folder of the shape in GPU_SHAPE."""
    shape = os.environ["GPU_SHAPE"]
    made, draft = make_model(shape, run.device), run.scratch / re.sub(r"\W", "_", shape)
    made.save_pretrained(draft)


def products(shape: str, head: bool) -> int:
    """Parameters that each token is multiplied with, or with `head` those of the layers and the head."""
    hidden, inner, layers, heads, kv, vocabulary, _ = SHAPES[shape]
    block = hidden * hidden * 2 + 2 * hidden * (hidden // heads * kv) + 3 * hidden * inner
    return layers * block + (vocabulary * hidden if head else 0)


def profiled(run: Run, what: str, work: Callable[[], object]) -> None:
    """One more time under torch's profiler: seconds of the GPU by kind of kernel, and the ten longest."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if run.device == "cpu":
        return
    finished()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        work()
        finished()
        wall = time.perf_counter() - began
    kernels = [one for one in found.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    kinds: dict[str, float] = {}
    for one in kernels:
        patterns = ((name, pattern) for name, pattern in KERNELS.items())
        kind = next((name for name, pattern in patterns if re.search(pattern, one.key.lower())), "other")
        kinds[kind] = kinds.get(kind, 0.0) + one.self_device_time_total / 1e6
    top = sorted(kernels, key=lambda one: -one.self_device_time_total)[:10]
    run.emit(
        profile=what,
        wall_s=round(wall, 3),
        gpu_s=round(sum(kinds.values()), 3),
        launches=sum(one.count for one in kernels),
        seconds={name: round(own, 3) for name, own in kinds.items()},
        top=[[one.key[:70], one.count, round(one.self_device_time_total / 1e3, 1)] for one in top],
    )


def teacher(run: Run) -> None:
    """Three ways to score the same spans, as in benchmarks/teacher.py, with two budgets of the third."""
    from benchmarks.teacher import score_dense, score_selected, synthetic_rollout, timed

    from hindsight.teacher.scorer import SpanScorer

    seven = run.part.endswith("7b")
    trajectories, turns, tokens, repeats = (4, 20, 2400, 1) if seven else (8, 20, 2400, 2)
    if run.small:
        trajectories, turns, tokens, repeats = 2, 4, 400, 1
    shape = run.shape("7b" if seven else "0.5b")
    lm = make_model(shape, run.device)
    run.emit(parameters=sum(own.numel() for own in lm.parameters()), gib=peak())
    sequences, requests = synthetic_rollout(trajectories, turns, tokens, lm.config.vocab_size)
    scorers = {budget: SpanScorer(lm, budget, 1.0) for budget in (8192, 32768)}
    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        "every position": lambda: score_dense(lm, sequences, requests),
        "selected spans": lambda: score_selected(lm, sequences, requests),
    }
    for budget, scorer in scorers.items():
        ways[f"shared prefixes, budget {budget}"] = lambda own=scorer: [  # type: ignore[misc]
            scored.logprobs for scored in own.score(sequences, requests)
        ]
    few = [request for request in requests if request.trajectory == 0]
    for warm in (score_dense, score_selected):
        warm(lm, sequences, few[:2])
    scorers[8192].score(sequences, few)
    first: np.ndarray | None = None
    for way, work in ways.items():
        finished()
        peak()
        before = sum(one.computed for one in scorers.values())
        results = [timed(work) for _ in range(repeats)]
        read = (sum(one.computed for one in scorers.values()) - before) // repeats
        read = read or sum(request.cut + len(request.tail) for request in requests)
        seconds = min(own for own, _ in results)
        first = results[0][1] if first is None else first
        run.emit(
            way=way,
            spans=len(requests),
            tokens=read,
            seconds=[round(own, 3) for own, _ in results],
            tokens_per_s=round(read / seconds),
            peak_gib=peak(),
            gap=float(np.abs(results[0][1] - first).max()),
            block_tflops=round(2 * products(shape, False) * read / seconds / 1e12, 2),
        )
    profiled(run, "shared prefixes, budget 8192", ways["shared prefixes, budget 8192"])


def samples(count: int, length: int, vocabulary: int) -> list[Any]:
    """Random ids; a quarter of the tokens was sampled, and scored by a teacher."""
    from hindsight.learner.samples import TrainingSample

    draw, made = np.random.default_rng(0), []
    for _ in range(count):
        size = length // 4
        positions = np.sort(draw.choice(np.arange(1, length), size, replace=False)).astype(np.int32)
        made.append(
            TrainingSample(
                draw.integers(100, vocabulary, length).astype(np.int32),
                positions,
                advantages=draw.normal(size=size).astype(np.float32),
                rollout_logprobs=np.full(size, -11.9, np.float32),
                teacher_logprobs=np.full(size, -11.8, np.float32),
            )
        )
    return made


def settings(run: Run, folder: str, *own: str) -> Config:
    """A run of SERL with that model on one GPU, with what a plan would decide."""
    from hindsight.configs.load import load_config

    length = 512 if run.small else 2048
    fixed = [
        "learner.ranks=1",
        "learner.zero_stage=1",
        "learner.gradient_checkpointing=false",
        "learner.lr=1e-5",
    ]
    fixed += [
        "method=serl",
        f"model.path={folder}",
        f"model.max_length={length}",
        "rollout.tensor_parallel=1",
    ]
    fixed += ["rollout.engines=1", "rollout.gpu_memory_utilization=0.4", "rollout.max_num_seqs=128"]
    fixed += [
        "rollout.kv_cache_gib=0.5",
        "weight_sync.transport=object_store",
        "cluster.sharing=side_by_side",
    ]
    return load_config(None, [*fixed, *own])


def learner(run: Run) -> None:
    """Updates of the project's own rank, outside Ray."""
    seven = run.part.endswith("7b")
    variants = [(8192, 1, False), (8192, 1, True)]
    if not seven:
        variants = [(8192, 1, False), (16384, 1, False), (16384, 2, False), (16384, 1, True)]
    for micro, zero, checkpointing in variants:
        updates(run, run.shape("7b/4" if seven else "0.5b"), micro, zero, checkpointing)


def updates(run: Run, shape: str, micro: int, zero: int, checkpointing: bool) -> None:
    """Three updates of a new rank, then one that is profiled.

    Args:
        micro: tokens of a micro-batch. zero: ZeRO stage.
    """
    import torch

    from hindsight.learner.policy import PolicyRank
    from hindsight.learner.rank import learner_env

    length, batches, folder = 128 if run.small else 2048, 2 if run.small else 4, run.folder(shape)
    micro = micro // 16 if run.small else micro
    config = settings(
        run,
        folder,
        f"learner.micro_batch_tokens={micro}",
        f"learner.zero_stage={zero}",
        f"learner.gradient_checkpointing={checkpointing}",
    )
    os.environ.update(learner_env(config, run.device == "cuda"))
    rank = PolicyRank(config, folder, 0)
    began = time.perf_counter()
    parameters, *_ = rank.start(*rank.host())
    finished()
    start, held = time.perf_counter() - began, peak()
    rows = samples(batches * micro // length, length, SHAPES[shape][5])
    work = pieces(rows, config)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        sums, norm = rank.update(work, 0.5, 1e-6)
        finished()
        times.append(time.perf_counter() - began)
    tokens = sum(len(row.ids) for row in rows)
    run.emit(
        micro_batch_tokens=micro,
        zero=zero,
        checkpointing=checkpointing,
        parameters=parameters,
        start_s=round(start, 1),
        seconds=[round(own, 3) for own in times],
        tokens=tokens,
        tokens_per_s=round(tokens / min(times)),
        model_tflops=round(update_flops(shape, rows, length) / min(times) / 1e12, 2),
        held_gib=held,
        peak_gib=peak(),
        norm=norm,
        loss=sums["policy"]["loss"],
        micro_batches=len(work[0]),
    )
    again = partial(rank.update, work, 0.5, 1e-6)
    profiled(run, f"update, micro-batch {micro}, ZeRO {zero}", again)
    del rank, again
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pieces(rows: list[Any], config: Config) -> list[Any]:
    """The work of one rank for an update on these samples."""
    from hindsight.learner.plan import plan_updates, weigh

    plan = plan_updates("policy", rows, config, weigh("policy", config))
    return [
        [("policy", micro, scale) for micro in micros]
        for micros, scale in zip(plan.work[0], plan.scales, strict=True)
    ]


def update_flops(shape: str, rows: list[Any], length: int) -> float:
    """FLOPs of an update on rows of that length: six per parameter and token, the head's on scored ones."""
    hidden, _, layers, *_ = SHAPES[shape]
    tokens, scored = sum(len(row.ids) for row in rows), sum(len(row.positions) for row in rows)
    block = products(shape, False)
    return 6 * (block + layers * hidden * length) * tokens + 6 * (products(shape, True) - block) * scored
