"""Seconds to score the action spans of trajectories: every position, selected spans, shared prefixes.

python -m benchmarks.teacher MODEL [--trajectories 4] [--turns 20] [--tokens 1200] [--repeats 3]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel

from hindsight.rollout.models import resolve
from hindsight.rollout.types import Span
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.scorer import SpanScorer

# Lengths in tokens, as ALFWorld's in SmolLM2's vocabulary: rules and room, hint and closing line with
# the tokens that open the assistant's turn, an action with its tags, the action alone.
OPENING, HINDSIGHT, RESPONSE, ACTION = 180, 55, 16, 9
Sequences = list[list[np.ndarray]]


def synthetic_rollout(
    trajectories: int, turns: int, tokens: int, vocabulary: int
) -> tuple[Sequences, list[ScoreRequest]]:
    """Random ids in the shape of full-history trajectories of `tokens` tokens, one request per turn."""
    draw = np.random.default_rng(0)
    sequences = [[draw.integers(100, vocabulary, tokens).astype(np.int32)] for _ in range(trajectories)]
    starts = np.linspace(OPENING, tokens - RESPONSE, turns).astype(int)
    requests = []
    for index, ((ids,), turn) in enumerate((ids, turn) for ids in sequences for turn in range(turns)):
        start = int(starts[turn])
        hindsight = draw.integers(100, vocabulary, HINDSIGHT).astype(np.int32)
        tail = np.concatenate([hindsight, ids[start : start + RESPONSE - 3]])  # up to the closing tag
        span = Span(len(tail) - ACTION, len(tail))
        requests.append(ScoreRequest(index // turns, turn, 0, start, tail, span))
    return sequences, requests


def context_ids(sequences: Sequences, request: ScoreRequest) -> torch.Tensor:
    """(1, L) ids of one request on its own."""
    front = sequences[request.trajectory][request.sequence][: request.cut]
    return torch.from_numpy(np.concatenate([front, request.tail])).long()[None]


def pick(logits: torch.Tensor, request: ScoreRequest) -> np.ndarray:
    """(W,) log-probs from the (W, vocabulary) logits of a request's span."""
    targets = torch.from_numpy(request.tail[request.span.start : request.span.end]).long().to(logits.device)
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0].cpu().numpy()


@torch.inference_mode()
def score_dense(
    model: PreTrainedModel, sequences: Sequences, requests: list[ScoreRequest]
) -> list[np.ndarray]:
    """Each context on its own, log-probs at every position."""
    scores = []
    for request in requests:
        ids = context_ids(sequences, request).to(model.device)
        logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        every = logprobs.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
        scores.append(every[request.cut + request.span.start - 1 : request.cut + request.span.end - 1])
    return scores


@torch.inference_mode()
def score_selected(
    model: PreTrainedModel, sequences: Sequences, requests: list[ScoreRequest]
) -> list[np.ndarray]:
    """Each context on its own, logits at the span only."""
    scores = []
    for request in requests:
        ids = context_ids(sequences, request).to(model.device)
        wanted = slice(request.cut + request.span.start - 1, request.cut + request.span.end - 1)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, wanted]
        scores.append(pick(model.get_output_embeddings()(hidden), request))
    return scores


def timed(score: Callable[[], list[np.ndarray]]) -> tuple[float, np.ndarray]:
    """Seconds and all log-probs of one call; the results lie on the CPU, so a GPU has finished."""
    start = time.perf_counter()
    scores = score()
    return time.perf_counter() - start, np.concatenate(scores)


def main(
    model: Annotated[str, typer.Argument(help="name or folder of a causal LM")],
    trajectories: int = 4,
    turns: int = 20,
    tokens: int = 1200,
    repeats: int = 3,
    budget: int = 8192,
    dtype: str = "bfloat16",
) -> None:
    """Compare the three ways on synthetic full-history trajectories."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder, kind = resolve(model), getattr(torch, dtype)
    lm: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")
    lm = lm.to(device).eval()
    sequences, requests = synthetic_rollout(trajectories, turns, tokens, lm.config.vocab_size)
    scorer = SpanScorer(lm, budget, temperature=1.0)
    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        "every position": lambda: score_dense(lm, sequences, requests),
        "selected spans": lambda: score_selected(lm, sequences, requests),
        "selected spans, shared prefixes": lambda: [s.logprobs for s in scorer.score(sequences, requests)],
    }
    scorer.score(sequences[:1], [request for request in requests if request.trajectory == 0])  # warm up
    before = scorer.computed
    runs: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in ways}
    for _ in range(repeats):  # in turns, so that a drift of the machine meets all alike
        for name, score in ways.items():
            runs[name].append(timed(score))

    alone = sum(request.cut + len(request.tail) for request in requests)
    shared = (scorer.computed - before) // repeats
    dense = runs["every position"]
    spans = f"{len(requests)} spans of {ACTION} tokens, {trajectories} trajectories of {tokens} tokens"
    table = Table(title=f"{spans}\n{dtype} on {device}, {repeats} repeats")
    for heading in (
        "way",
        "tokens",
        "seconds (median)",
        "least to most",
        "times faster",
        "largest difference",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name, results in runs.items():
        seconds = [result[0] for result in results]
        computed = shared if name.endswith("prefixes") else alone
        ratio = median(result[0] for result in dense) / median(seconds)
        gap = float(np.abs(results[0][1] - dense[0][1]).max())
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        table.add_row(name, f"{computed:,}", f"{median(seconds):.2f}", spread, f"{ratio:.2f}", f"{gap:.4f}")
    Console().print(table)
    pairs = zip(dense, runs["selected spans, shared prefixes"], strict=True)
    print(ratio_line("every position ÷ teacher spans", [every[0] / own[0] for every, own in pairs]))


if __name__ == "__main__":
    typer.run(main)
