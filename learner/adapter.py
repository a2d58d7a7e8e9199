"""LoRA (arXiv 2106.09685): a low-rank adapter on each chosen linear layer of a frozen model, and its average.

Engines, teacher and checkpoints of models get whole weights, W + s·B·A under the model's own names. So one
transport, digest and canary serve both ways to train, and the engines keep their prefix cache and kernels.
The price: in bfloat16 a change of less than half a step of a weight's own rounding does not reach them. Their
distance to the learner is in `publish/canary_gap` and `learner/mismatch_kl`; float32 has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema import Lora

NAME = "default"  # PEFT's name of a model's only adapter
Pair = tuple[torch.Tensor, torch.Tensor]  # A (rank, in), B (out, rank)


class AdapterError(ValueError):
    """The model's layers cannot carry the adapter that `learner.lora` asks for."""


class Adapter:
    """The trainable part of a model whose own parameters it froze. B = 0 at first: it changes nothing yet."""

    def __init__(self, lm: Any, settings: Lora, seed: int) -> None:
        """Put an adapter on `lm`, a transformers causal LM, in place; the same `seed` draws the same A.

        Raises:
            AdapterError: a target is not a plain linear layer below the head, or there is none.
        """
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets or "all-linear",
        )
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(self.config, lm, NAME)
        except ValueError as error:
            raise AdapterError(f"learner.lora.targets = {settings.targets} does not fit: {error}") from error
        layers: dict[str, Any] = {n: layer for n, layer in lm.named_modules() if isinstance(layer, LoraLayer)}
        for name, layer in layers.items():
            # learner.logprobs computes the head from its weight alone, past an adapter.
            if layer is lm.get_output_embeddings() or not isinstance(layer.base_layer, nn.Linear):
                raise AdapterError(f"learner.lora.targets names {name}: choose linear layers below the head")
        self.scale = settings.alpha / settings.rank
        self.pairs: dict[str, Pair] = {  # by the model's own name of the weight that they add to
            f"{name}.weight": (layer.lora_A[NAME].weight, layer.lora_B[NAME].weight)
            for name, layer in layers.items()
        }
        # In float32: a moving average in bfloat16 would round small steps away.
        self.average: dict[str, Pair] = {
            name: (a.detach().float().clone(), b.detach().float().clone())
            for name, (a, b) in self.pairs.items()
        }
        self._drops = [layer.lora_dropout[NAME] for layer in layers.values()]
        self._drop(False)

    def follow(self, name: str, share: float) -> None:
        """Move one layer's average by `share` of the way to the adapter. A and B are averaged, not B·A."""
        for average, now in zip(self.average[name], self.pairs[name], strict=True):
            average.lerp_(now.detach().to(average), share)

    def merged(self, name: str, weight: torch.Tensor, average: bool = False) -> torch.Tensor:
        """W + s·B·A of one layer, with the average's A and B or the adapter's; `weight` stays as it is."""
        a, b = (self.average if average else self.pairs)[name]
        exact = weight.detach().float() + self.scale * (b.detach().float() @ a.detach().float())
        return exact.to(weight.dtype)

    @contextmanager
    def dropout(self, on: bool) -> Iterator[None]:
        """Dropout is off but in blocks that switch it on."""
        self._drop(on)
        try:
            yield
        finally:
            self._drop(False)

    def _drop(self, on: bool) -> None:
        for module in self._drops:
            module.train(on)

    def save(self, folder: Path, pairs: dict[str, Pair]) -> None:
        """Write these A and B as an adapter that PEFT loads on the model that training began with."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        layers = {f"base_model.model.{name.removesuffix('.weight')}": pair for name, pair in pairs.items()}
        tensors = {
            f"{layer}.lora_{letter}.weight": tensor.contiguous()
            for layer, pair in layers.items()
            for letter, tensor in zip("AB", pair, strict=True)
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(str(folder))
