"""A model's architecture without its weights: what the memory estimate and the engine's adapter ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hindsight.configs.schema import Lora
from hindsight.rollout.models import EMBEDDED, ModelMissing, ModelUnfit, resolve

# Hub models that recipes and docs name, so that `hindsight plan` needs no network for them.
QWEN2 = {"model_type": "qwen2", "tie_word_embeddings": False, "vocab_size": 152064}
QWEN3 = {"model_type": "qwen3", "tie_word_embeddings": True, "vocab_size": 151936, "head_dim": 128}


def _size(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B-Instruct": QWEN2 | _size(3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-72B-Instruct": QWEN2 | _size(8192, 29568, 80, 64, 8),
    "Qwen/Qwen3-4B-Instruct-2507": QWEN3 | _size(2560, 9728, 36, 32, 8),
}


def outline(name: str) -> Any:
    """The causal LM of an embedded, local, known or hub model, on the meta device: shapes without values.

    Of a hub model only the configuration is downloaded.

    Raises:
        ModelMissing: there is no such model, or the hub cannot be reached.
        ModelUnfit: it is no causal LM.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if name in KNOWN:
        config = AutoConfig.for_model(**KNOWN[name])
    else:
        folder = resolve(name) if name in EMBEDDED else Path(name).expanduser()
        try:
            config = AutoConfig.from_pretrained(folder if folder.is_dir() else name)
        except (OSError, ValueError) as error:
            raise ModelMissing(
                f"model.path = {name!r}: its config.json cannot be read ({error}). Set it to a folder with "
                "one, or use a machine that reaches the hub"
            ) from error
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ModelUnfit(f"model.path = {name!r} is not a causal LM of transformers: {error}") from error


def adapted_layers(lm: Any, settings: Lora) -> dict[str, nn.Linear]:
    """The linear layers that an adapter extends, by name: those that `targets` names, or all but the head."""
    head = lm.get_output_embeddings()
    layers = {name: layer for name, layer in lm.named_modules() if isinstance(layer, nn.Linear)}
    wanted = tuple(settings.targets)
    return {
        name: layer
        for name, layer in layers.items()
        if layer is not head and (not wanted or any(f".{name}".endswith(f".{end}") for end in wanted))
    }


def layer_names(model: str, settings: Lora) -> list[str]:
    """The last name components of the adapted layers, such as q_proj."""
    return sorted({name.rpartition(".")[2] for name in adapted_layers(outline(model), settings)})


def trained_parameters(lm: Any, settings: Lora) -> int:
    """How many numbers are trained: the adapter's, or all of the model's."""
    if not settings.rank:
        return sum(parameter.numel() for parameter in lm.parameters())
    layers = adapted_layers(lm, settings).values()
    return sum(settings.rank * (layer.in_features + layer.out_features) for layer in layers)
