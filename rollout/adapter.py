"""LoRA (arXiv 2106.09685): a low-rank adapter on linear layers of a frozen model, and its moving average.

Learner, engines, teacher and reference policy compute W·x + s·B·A·x and never merge. A bfloat16 weight has 8
significant bits, so W + s·B·A would round off nearly all of the change from a small learning rate. A weight
sync sends only A and B, under the names that PEFT uses in files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hindsight.configs.schema import Lora

NAME = "default"  # PEFT's name of a model's only adapter
FOLDER = "adapter"  # subfolder of a model folder
LowRank = tuple[torch.Tensor, torch.Tensor]  # A (rank, in), B (out, rank)


class AdapterError(ValueError):
    """The adapter that `learner.lora` specifies does not fit the model."""


class Adapter:
    """A trainable adapter on a frozen model. B is 0 at first, so the model's outputs do not change."""

    def __init__(self, lm: Any, settings: Lora, seed: int) -> None:
        """Add an adapter to `lm`, a transformers causal LM, in place. The `seed` determines A.

        Raises:
            AdapterError: a target is missing or is not a plain linear layer below the head.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(peft_config(settings), lm, NAME)
        except ValueError as error:
            raise AdapterError(f"learner.lora.targets = {settings.targets} does not fit: {error}") from error
        layers: dict[str, Any] = {n: layer for n, layer in lm.named_modules() if isinstance(layer, LoraLayer)}
        for name, layer in layers.items():
            # learner.logprobs reads the head's weight directly and would bypass an adapter.
            if layer is lm.get_output_embeddings() or not isinstance(layer.base_layer, nn.Linear):
                raise AdapterError(f"learner.lora.targets names {name}: choose linear layers below the head")
        self.scale = settings.alpha / settings.rank
        self.pairs: dict[str, LowRank] = {  # by the model's name of the adapted weight
            f"{name}.weight": (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)
            for name, layer in layers.items()
        }
        # In float32: a moving average in bfloat16 would round off small steps.
        self.average: dict[str, LowRank] = {
            name: (a.detach().float().clone(), b.detach().float().clone())
            for name, (a, b) in self.pairs.items()
        }
        self._drops = [layer.lora_dropout[NAME] for layer in layers.values()]
        self._drop(False)

    def follow(self, name: str, share: float) -> None:
        """Move one layer's average toward the adapter by `share`. A and B are averaged, not B·A."""
        for average, now in zip(self.average[name], self.pairs[name], strict=True):
            average.lerp_(now.detach().to(average), share)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return W + s·B·A of one layer in float32, without changing `weight`."""
        a, b = self.pairs[name]
        return weight.detach().float() + self.scale * (b.detach().float() @ a.detach().float())

    @contextmanager
    def dropout(self, on: bool) -> Iterator[None]:
        """Switch dropout on or off in a block. It is off elsewhere."""
        self._drop(on)
        try:
            yield
        finally:
            self._drop(False)

    def _drop(self, on: bool) -> None:
        for module in self._drops:
            module.train(on)


def peft_names(pairs: Mapping[str, LowRank]) -> dict[str, torch.Tensor]:
    """Return A and B by PEFT's names, given `pairs` by the model's names of the adapted weights."""
    return {
        f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight": tensor
        for name, pair in pairs.items()
        for letter, tensor in zip("AB", pair, strict=True)
    }


def peft_config(settings: Lora, base: str | None = None) -> Any:
    """Convert `settings` to PEFT's. `base`: folder of the base model."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets or "all-linear",
        base_model_name_or_path=base,
    )


def write_adapter(
    folder: Path, tensors: Mapping[str, torch.Tensor], settings: Lora, base: str | None = None
) -> None:
    """Write A and B (by PEFT's names) to a folder that PEFT and vLLM can load on top of the base model."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    peft_config(settings, base).save_pretrained(str(folder))


@dataclass(frozen=True)
class Saved:
    """An adapter written by `write_adapter`."""

    base: Path
    settings: Lora
    tensors: dict[str, torch.Tensor]


def read_adapter(model: Path) -> Saved | None:
    """Read the adapter of a checkpoint's model folder; None if it has none.

    Raises:
        AdapterError: the base model is missing.
    """
    from safetensors.torch import load_file

    folder = model / FOLDER
    if not folder.is_dir():
        return None
    saved = json.loads((folder / "adapter_config.json").read_text())
    base = Path(saved["base_model_name_or_path"])
    if not base.is_dir():
        raise AdapterError(
            f"base model {base} of the adapter in {model} does not exist. Set base_model_name_or_path in "
            f"{folder / 'adapter_config.json'} to its current folder"
        )
    targets = saved["target_modules"]
    settings = Lora(saved["r"], saved["lora_alpha"], targets=[] if targets == "all-linear" else targets)
    return Saved(base, settings, load_file(folder / "adapter_model.safetensors"))
