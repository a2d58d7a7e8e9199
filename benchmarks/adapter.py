"""What bfloat16 leaves of a small adapter, kept next to the weights as engines serve it or merged in.

    python -m benchmarks.adapter MODEL TEXT [--steps 20] [--lr 5e-6] [--rank 32] [--alpha 64]

Trains an adapter as the learner would (AdamW, float32) on windows of a text, rounds it in either way, and
compares weights and log-probs with the unrounded ones. All arithmetic is in float32, so that nothing but what
the weights can hold makes a difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from hindsight.configs.schema import Lora
from hindsight.rollout.adapter import Adapter

WINDOW = 256  # tokens
HELD_OUT = 8  # windows that are not trained on


def windows(tokenizer: Any, text: str, steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(steps, batch, WINDOW) ids to train on, from the start again where the text is short, and the last
    (HELD_OUT, WINDOW)."""
    ids = torch.tensor(tokenizer(text).input_ids)
    whole = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    if len(whole) <= HELD_OUT:
        raise typer.BadParameter(f"the text has {len(whole)} windows of {WINDOW} tokens; give a longer one")
    own = torch.arange(steps * batch) % (len(whole) - HELD_OUT)
    return whole[own].reshape(steps, batch, WINDOW), whole[-HELD_OUT:]


def train(lm: Any, adapter: Adapter, batches: torch.Tensor, lr: float) -> None:
    """A step of AdamW for each batch."""
    trained = [tensor for pair in adapter.pairs.values() for tensor in pair]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    for ids in track(batches, description="training"):
        lm(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.inference_mode()
def logprobs(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    """(rows, WINDOW − 1) log-probs of the text's own tokens."""
    scores = lm(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return scores.gather(-1, ids[:, 1:, None])[..., 0]


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """As bfloat16 holds it."""
    return tensor.bfloat16().float()


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    """|found − true| / |true|."""
    return float((found - true).norm() / true.norm())


@torch.no_grad()
def main(
    model: Annotated[Path, typer.Argument(help="folder of a causal LM")],
    text: Annotated[Path, typer.Argument(help="a file to learn from")],
    steps: int = 20,
    batch: int = 2,
    lr: float = 5e-6,
    rank: int = 32,
    alpha: int = 64,
) -> None:
    """Print how far either way is from the adapter as it was trained."""
    lm: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).float()
    batches, held = windows(AutoTokenizer.from_pretrained(model), text.read_text(), steps, batch)
    before = logprobs(lm, held)
    adapter = Adapter(lm, Lora(rank=rank, alpha=alpha), seed=0)
    with torch.enable_grad():
        train(lm, adapter, batches, lr)
    exact = logprobs(lm, held) - before

    layers = {name: lm.get_submodule(name.removesuffix(".weight")).base_layer for name in adapter.pairs}
    bases = {name: layer.weight.clone() for name, layer in layers.items()}
    merged = {name: adapter.merged(name, weight) for name, weight in bases.items()}
    change = torch.cat([(merged[name] - weight).flatten() for name, weight in bases.items()])
    table = Table(title=f"{steps} steps at {lr:g}, rank {rank}, alpha {alpha}: distance to float32")
    for heading in ("in bfloat16", "weights that move", "of their change", "of log-probs' change"):
        table.add_column(heading, justify="left" if heading == "in bfloat16" else "right")

    def tell(name: str, held_change: torch.Tensor) -> None:
        moved, found = float((held_change != 0).float().mean()), logprobs(lm, held) - before
        table.add_row(name, f"{moved:.1%}", f"{error(held_change, change):.2%}", f"{error(found, exact):.2%}")

    for a, b in adapter.pairs.values():
        a.copy_(rounded(a))
        b.copy_(rounded(b))
    beside = [(adapter.merged(name, weight) - weight).flatten() for name, weight in bases.items()]
    tell("A and B next to W", torch.cat(beside))
    for name, (_, b) in adapter.pairs.items():
        b.zero_()
        layers[name].weight.copy_(rounded(merged[name]))
    into = [(layers[name].weight - weight).flatten() for name, weight in bases.items()]
    tell("W + s·B·A", torch.cat(into))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"mean change: weights {change.abs().mean():.1e}, log-probs {exact.abs().mean():.1e}")


if __name__ == "__main__":
    typer.run(main)
