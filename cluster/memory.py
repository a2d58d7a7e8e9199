"""How much memory each role needs, estimated from the model's shape. Pure: nothing is loaded or started.

All sizes are GiB per GPU (per process without GPUs). docs/cluster.md compares the estimates with what
runs allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hindsight.configs.schema import Config
from hindsight.learner.logprobs import CHUNK
from hindsight.rollout.engine import GPU_BATCH
from hindsight.teacher.scorer import HEAD_ROWS

GIB = 2**30
ITEM = {"bfloat16": 2, "float32": 4}  # bytes
MASTER, MOMENTS, GRADIENT = 4, 8, 4  # bytes of float32 optimizer state per trained parameter
BUCKET = 500_000_000  # parameters that DeepSpeed gathers or reduces at once (its default)
PROCESS = 1.0  # CUDA context, NCCL and libraries; without a GPU the libraries of a Python process
ENGINE = 1.5  # CUDA graphs and workspaces of vLLM, beyond PROCESS
KEPT = 0.5  # what a sleeping engine or an offloaded learner keeps on the GPU, beyond PROCESS


@dataclass(frozen=True)
class Shape:
    """The dimensions of a causal LM that its memory depends on."""

    parameters: int
    trained: int  # parameters that receive gradients: all, or the adapter's
    layers: int
    hidden: int
    intermediate: int
    kv: int  # width of a token's keys and values together, per layer
    vocabulary: int


def shape_of(model: Any, trained: int) -> Shape:
    """The shape of a transformers causal LM, which may be on the meta device."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shape(
        parameters=parameters,
        trained=trained,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kv=2 * (getattr(config, "num_key_value_heads", None) or heads) * head,
        vocabulary=config.vocab_size,
    )


@dataclass(frozen=True)
class Need:
    """Memory of one role on one GPU, by what holds it."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        large = sorted(self.parts.items(), key=lambda part: -part[1])
        return f"{self.total:.1f} GiB ({', '.join(f'{name} {size:.1f}' for name, size in large)})"


def learner_need(
    shape: Shape, config: Config, ranks: int, stage: int, checkpointing: bool, trained: int | None = None
) -> Need:
    """One DeepSpeed rank of the policy, or of a critic (`trained` = all parameters).

    ZeRO 1 divides the optimizer's states by the ranks, 2 also the gradients, 3 also the weights.
    """
    item, tokens = ITEM[config.model.dtype], config.learner.micro_batch_tokens
    trained = shape.trained if trained is None else trained

    def share(size: float, from_stage: int) -> float:
        return size / ranks if stage >= from_stage else size

    layer = item * (10 * shape.hidden + 4 * shape.intermediate)  # of one token, kept for the backward pass
    depth = layer + shape.layers * item * shape.hidden if checkpointing else shape.layers * layer
    gathered = min(BUCKET, shape.parameters) * item if stage == 3 else 0
    parts = {
        "weights": share(shape.parameters * item, 3) + gathered,
        "optimizer": share(trained * (MASTER + MOMENTS), 1),
        "gradients": share(trained * (GRADIENT + item), 2)
        + (min(BUCKET, trained) * GRADIENT if stage else 0.0),
        "activations": tokens * depth,
        "logits": 4 * CHUNK * shape.vocabulary * 4,  # logits, log-softmax and their gradients in float32
    }
    return Need({name: size / GIB for name, size in parts.items()} | {"process": PROCESS})


def scorer_need(shape: Shape, config: Config, averages: bool, gpus: int = 1) -> Need:
    """A teacher or a reference policy on `gpus` GPUs, each with a part of the layers."""
    item, tokens = ITEM[config.model.dtype], config.teacher.batch_tokens
    parts = {
        "weights": shape.parameters * item / gpus,
        "average": shape.parameters * 4 / gpus if averages else 0.0,
        "activations": tokens * item * (8 * shape.hidden + 3 * shape.intermediate),
        "keys": 2 * tokens * shape.layers * shape.kv * item / gpus,  # twice: a cache is copied as it grows
        "logits": 3 * HEAD_ROWS * shape.vocabulary * 4,
    }
    return Need({name: size / GIB for name, size in parts.items()} | {"process": PROCESS})


def engine_need(shape: Shape, config: Config, parallel: int, sequences: int = 1) -> Need:
    """One GPU of an engine with a KV cache for that many of the longest sequences."""
    item, longest = ITEM[config.model.dtype], config.model.max_length
    tokens = max(GPU_BATCH, config.rollout.max_num_seqs)
    parts = {
        "weights": shape.parameters * item / parallel,
        "KV cache": sequences * longest * shape.layers * shape.kv * item / parallel,
        "activations": tokens * item * (8 * shape.hidden + 3 * shape.intermediate / parallel),
        "logits": 3 * config.rollout.max_num_seqs * shape.vocabulary * 4,
    }
    return Need({name: size / GIB for name, size in parts.items()} | {"process": PROCESS + ENGINE})


def cpu_engine_need(shape: Shape, config: Config) -> Need:
    """An engine without a GPU, whose KV cache is a setting.

    vLLM packs the weights of linear layers for the CPU's kernels, and has both copies while it does.
    """
    item = ITEM[config.model.dtype]
    parts = {
        "weights": shape.parameters * item / GIB,
        "packed weights": shape.parameters * item / GIB,
        "KV cache": config.rollout.kv_cache_gib,
        "process": PROCESS + ENGINE,
    }
    return Need(parts)
