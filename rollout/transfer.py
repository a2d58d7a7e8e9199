"""The engine-process end of the object-store transport, in the terms of vLLM's weight-transfer API.

vLLM runs its model in processes of its own, which are no Ray workers. The engine actor therefore takes the
buffer out of Ray's object store and lends it to them as anonymous shared memory (`lend`); in there,
`ObjectStoreTransfer` loads it. vLLM imports this module in those processes because it is named as the
worker extension, and that import registers the backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from hindsight.rollout.weights import Layout, TensorMeta, digest, unpack

BACKEND = "object_store"


@contextmanager
def lend(flat: np.ndarray) -> Iterator[str]:
    """A path under which other processes of this user on this machine can map a copy of `flat`.

    It is a memfd, so nothing stays behind if this process is killed and /dev/shm may be small.
    """
    descriptor = os.memfd_create("weights")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(flat.data)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)


@dataclass
class NoInit(WeightTransferInitInfo):
    """Shared memory needs no rendezvous."""


@dataclass
class BufferUpdate(WeightTransferUpdateInfo):
    """Where the buffer can be mapped and what is in it; plain types, for vLLM's message encoding."""

    path: str
    layout: list[list[Any]]  # [name, shape, dtype] of each tensor


def update_info(path: str, layout: Layout) -> dict[str, Any]:
    """The message that `ObjectStoreTransfer` understands."""
    return {"path": path, "layout": [[meta.name, list(meta.shape), meta.dtype] for meta in layout]}


class ObjectStoreTransfer(WeightTransferEngine[NoInit, BufferUpdate]):
    """Loads one whole set of weights from shared memory, through vLLM's layerwise reload."""

    init_info_cls = NoInit
    update_info_cls = BufferUpdate

    def __init__(
        self,
        config: WeightTransferConfig,
        vllm_config: VllmConfig,
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.parameters = {name for name, _ in model.named_parameters()}
        self.digest = ""

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Let the model take checkpoint tensors again."""
        self.digest = ""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BufferUpdate) -> None:
        """Load every parameter. Raises ValueError naming those that the buffer lacks."""
        layout = tuple(TensorMeta(name, tuple(shape), dtype) for name, shape, dtype in update_info.layout)
        flat = np.memmap(update_info.path, dtype=np.uint8, mode="r")
        self.digest = digest(flat)
        loaded = cast("Any", self.model).load_weights(unpack(flat, layout))
        if missing := sorted(self.parameters - loaded):
            raise ValueError(
                f"published weights lack {len(missing)} of the engine's parameters: {missing[:8]}"
            )

    def finish_weight_update(self) -> None:
        """Turn the tensors into the form that the kernels use."""
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_packed_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held."""


def refresh_packed_head(model: torch.nn.Module) -> None:
    """Pack the LM head again on CPU, where the reload leaves the head of tied embeddings as it was.

    There the kernel uses a packed copy that is made when a layer's own tensors are loaded; a tied head has
    none of its own, so it would go on giving the logits of the old weights.
    """
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class WeightsExtension:
    """Mixed into vLLM's worker: what the engine may ask of it besides vLLM's own methods."""

    weight_transfer_engine: Any

    def received_digest(self) -> str:
        """Digest of the buffer that this worker loaded last; empty where no buffer has come."""
        transfer = self.weight_transfer_engine
        return transfer.digest if isinstance(transfer, ObjectStoreTransfer) else ""


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransfer)
