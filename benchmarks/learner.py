"""One update of the learner against other ways to do it, on the same rows, model and loss.

    python -m benchmarks.learner [--groups 1] [--size 4] [--layers 0] [--rounds 3] [--budget 4096]
                                    [--dtype bfloat16]

Timed in turn within each round:
    ours     the learner's rank as `hindsight replay` has it: without what DeepSpeed does around a step
    rows     the same rank with micro-batches of one row: nothing is packed or shared
    padded   a plain PyTorch loop: padded rows, logits at all positions, log-softmax in float32, AdamW; with
             --dtype bfloat16 its weights have no float32 copies, so it does less than ours
    trl      `GRPOTrainer.compute_loss` of TRL on padded rows, backward pass, AdamW; left out without TRL
    peak     the fastest matmul of the model's own sizes, and of a large square, in the same type

Rows are random tokens in the lengths of ALFWorld's chats: groups with one first prompt, and actions that are
a fifth of the rest. Without a GPU the CPU seconds of this process are compared: other programs change them
less.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from benchmarks.ratio import ratio_line
from benchmarks.rows import COMPARED
from rich.console import Console
from rich.table import Table

from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.learner.batching import over_ranks
from hindsight.learner.packing import common
from hindsight.learner.plain import PlainRank
from hindsight.learner.plan import plan_updates
from hindsight.learner.rank import Piece, learner_env
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.models import resolve

TURN, ACTION = 50, 10  # tokens of a turn, and of the action that ends it
CLIP = 0.2


def draw(groups: int, size: int, prompt: int, longest: int, vocabulary: int) -> list[TrainingSample]:
    """Samples of groups, in random order; lengths are uniform from half the longest on."""
    rng, samples = np.random.default_rng(0), []
    for _ in range(groups):
        first = rng.integers(10, vocabulary, prompt)
        for _ in range(size):
            rest = rng.integers(10, vocabulary, int(rng.integers(longest // 2, longest + 1)) - prompt)
            places = np.arange(prompt, prompt + len(rest), dtype=np.int32)
            positions = places[(places - prompt) % TURN >= TURN - ACTION]
            count = len(positions)
            samples.append(
                TrainingSample(
                    np.concatenate([first, rest]).astype(np.int32),
                    positions,
                    rollout_logprobs=np.full(count, -10.0, np.float32),
                    advantages=np.full(count, rng.normal(), np.float32),
                )
            )
    return [samples[index] for index in rng.permutation(len(samples))]


def padded(samples: Sequence[TrainingSample], device: Any) -> dict[str, torch.Tensor]:
    """(B, L) ids, mask of the rows, mask of sampled tokens; and (B,) advantages."""
    shape = (len(samples), max(len(one.ids) for one in samples))
    made = {name: np.zeros(shape, np.int64) for name in ("ids", "rows", "sampled")}
    for row, one in enumerate(samples):
        made["ids"][row, : len(one.ids)] = one.ids
        made["rows"][row, : len(one.ids)] = 1
        made["sampled"][row, one.positions] = 1
    advantages = torch.tensor([float(one.column("advantages")[0]) for one in samples])
    tensors = {name: torch.from_numpy(array) for name, array in made.items()} | {"advantages": advantages}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def find_trl() -> None:
    """Make TRL importable where `make bench` has put it; what the environment has comes first."""
    sys.path.append(str(COMPARED))


class Plain:
    """A model with AdamW in float32 that reads padded micro-batches."""

    def __init__(self, path: Path, samples: Sequence[TrainingSample], config: Config, device: Any) -> None:
        from transformers import AutoModelForCausalLM

        kind = getattr(torch, config.model.dtype)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=kind).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        each = max(1, config.learner.micro_batch_tokens // max(len(one.ids) for one in samples))
        self.micros = [padded(samples[at : at + each], device) for at in range(0, len(samples), each)]
        self.tokens = sum(len(one.positions) for one in samples)

    def update(self) -> None:
        """One optimizer step."""
        for micro in self.micros:
            self.loss(micro).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        """PPO's loss over the sampled tokens, from logits at all positions."""
        logits = self.model(input_ids=micro["ids"], attention_mask=micro["rows"], use_cache=False).logits
        table = logits[:, :-1].float().log_softmax(-1)
        now = table.gather(2, micro["ids"][:, 1:, None])[..., 0]
        ratio = (now - now.detach()).exp()
        gain = micro["advantages"][:, None]
        value = -torch.min(gain * ratio, gain * ratio.clamp(1 - CLIP, 1 + CLIP))
        return (value * micro["sampled"][:, 1:]).sum() / self.tokens


class Trl(Plain):
    """As `Plain`, with TRL's loss. It computes log-probs of all tokens after the prompt."""

    def __init__(self, path: Path, samples: Sequence[TrainingSample], config: Config, device: Any) -> None:
        find_trl()
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        super().__init__(path, samples, config, device)
        settings = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=2,
            num_generations=2,
            beta=0.0,
            loss_type="bnpo",  # a mean over the tokens of a micro-batch: it needs no counts of others
            gradient_checkpointing=False,  # as ours
            use_cpu=device.type == "cpu",
            bf16=False,
            report_to=[],
        )
        self.trainer = GRPOTrainer(
            model=self.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": ["one", "two"]}),
            processing_class=AutoTokenizer.from_pretrained(path),
        )
        self.trainer.current_gradient_accumulation_steps = len(self.micros)
        self.prompt = min(int(one.positions[0]) for one in samples) - TURN + ACTION

    def loss(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        first, rest = slice(None, self.prompt), slice(self.prompt, None)
        inputs = {
            "prompt_ids": micro["ids"][:, first],
            "prompt_mask": micro["rows"][:, first],
            "completion_ids": micro["ids"][:, rest],
            "completion_mask": micro["rows"][:, rest],
            "tool_mask": micro["sampled"][:, rest],
            "advantages": micro["advantages"],
        }
        made: torch.Tensor = self.trainer.compute_loss(self.model, inputs)
        return made


def ours(rank: PlainRank, samples: Sequence[TrainingSample], config: Config, alone: bool) -> None:
    """One update by a rank, planned as in a run."""
    plan = plan_updates("policy", samples, config, 1.0, alone)
    [work] = plan.work
    pieces: list[list[Piece]] = [
        [("policy", micro, scale) for micro in micros]
        for micros, scale in zip(work, plan.scales, strict=True)
    ]
    rank.update(pieces, 0.0, 1e-6)


def peak(model: Any, device: Any) -> float:
    """FLOP/s of the fastest of some matmuls."""
    shape, kind = model.config, model.dtype
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (2048, shape.hidden_size, shape.intermediate_size)):
        left = torch.randn(rows, inner, device=device).to(kind)
        right = torch.randn(inner, columns, device=device).to(kind)
        repeats = 5 if device.type == "cpu" else 200

        def run(left: torch.Tensor = left, right: torch.Tensor = right, repeats: int = repeats) -> None:
            for _ in range(repeats):
                left @ right

        run()
        best = max(best, 2 * repeats * rows * inner * columns / seconds(run))
    return best


def work_of(model: Any, samples: Sequence[TrainingSample], budget: int) -> tuple[float, float]:
    """FLOPs of an update's matmuls and attention, packed as planned; the share of the tokens it computes."""
    shape = model.config
    linear = sum(p.numel() for name, p in model.model.layers.named_parameters() if p.dim() == 2)
    pairs = read = 0
    for micro in over_ranks([one.ids for one in samples], budget, 1)[0]:
        rows = [samples[index].ids for index in micro]
        for before, row in zip([rows[0][:0], *rows], rows, strict=False):
            same = common(before, row)
            read += len(row) - same
            pairs += (len(row) * (len(row) + 1) - same * (same + 1)) // 2
    width = shape.num_attention_heads * (getattr(shape, "head_dim", None) or 0)
    width = width or shape.hidden_size
    head = sum(len(one.positions) for one in samples) * shape.hidden_size * shape.vocab_size
    attention = 2 * pairs * width * shape.num_hidden_layers
    return 6.0 * (linear * read + attention + head), read / sum(len(one.ids) for one in samples)


def seconds(part: Callable[[], object]) -> float:
    """How long a call takes: of the GPU, or of the CPUs."""
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    began = clock()
    part()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - began


def shortened(path: Path, layers: int, folder: str) -> Path:
    """The model with its first layers only, in a new folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path)
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:layers]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path).save_pretrained(folder)
    return Path(folder)


def settings(recipe: str, budget: int, dtype: str) -> Config:
    """The recipe's settings for one rank and one mini-batch, without recomputing activations."""
    fixed = ["learner.ranks=1", "learner.zero_stage=1", "learner.mini_batches=1"]
    config = load_config(recipe, [f"learner.micro_batch_tokens={budget}", f"model.dtype={dtype}", *fixed])
    return replace(config, learner=replace(config.learner, gradient_checkpointing=False))


def timed(
    parts: dict[str, Callable[[], object]], model: Any, device: torch.device, rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each part, in turn within each round; FLOP/s of the fastest matmul of the same rounds."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    peaks = []
    for turn in range(rounds + 1):
        found = {name: seconds(part) for name, part in parts.items()}
        reached = peak(model, device)
        typer.echo(f"round {turn}: {found}, {reached / 1e9:.1f} GFLOP/s", err=True)
        if turn:  # the first round gets its memory from the system
            peaks.append(reached)
            for name, own in found.items():
                spent[name].append(own)
    return spent, peaks


def main(
    recipe: str = "alfworld",
    groups: int = 1,
    size: int = 4,
    prompt: int = 300,
    longest: int = 1200,
    budget: int = 4096,
    layers: int = 0,
    rounds: int = 3,
    threads: int = 1,
    dtype: str = "",
) -> None:
    """Print median [least, most] of each part over the rounds, and the ratios.

    Args:
        layers: how many of the model's to keep; 0: all.
        dtype: by default bfloat16 on a GPU, and float32 on a CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    config, console = settings(recipe, budget, dtype), Console()
    os.environ.update(learner_env(config, device.type == "cuda"))
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(str(resolve(config.model.path)))
        path = shortened(path, layers, folder) if layers else path
        rank = PlainRank(config, str(path), 0)
        rank.start()
        rank.engine.module.train()
        model = rank.engine.module.lm
        samples = draw(groups, size, prompt, longest, model.config.vocab_size)
        loop = Plain(path, samples, config, device)
        parts: dict[str, Callable[[], object]] = {
            "ours": lambda: ours(rank, samples, config, False),
            "rows": lambda: ours(rank, samples, config, True),
            "padded": loop.update,
        }
        try:
            trl = Trl(path, samples, config, device)
        except ImportError as error:
            console.print(f"trl is left out: {error}")
        else:
            parts["trl"] = trl.update
        flops, share = work_of(model, samples, budget)
        spent, peaks = timed(parts, model, device, rounds)
    title = f"{len(samples)} rows of {config.model.path} ({layers or 'all'} layers), {config.model.dtype}"
    table = Table(title=title)
    table.add_column("part")
    table.add_column("seconds, median [least, most]", justify="right")
    for name, times in spent.items():
        table.add_row(name, f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]")
    console.print(table)
    console.print(
        f"peak {statistics.median(peaks) / 1e9:.1f} GFLOP/s; {share:.0%} of the tokens are computed"
    )
    for name in list(spent)[1:]:
        print(ratio_line(f"{name}/ours", [b / a for a, b in zip(spent["ours"], spent[name], strict=True)]))
    print(ratio_line("ours/peak", [flops / own / top for own, top in zip(spent["ours"], peaks, strict=True)]))


if __name__ == "__main__":
    typer.run(main)
