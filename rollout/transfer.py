"""The object-store transport in vLLM's worker processes, as a backend of vLLM's weight-transfer API.

vLLM's worker processes are not Ray workers. The engine actor therefore copies the buffer from Ray's object
store into anonymous shared memory (`SharedCopy`), and `ObjectStoreTransfer` loads it in the workers. vLLM
imports this module there because it contains the worker extension. The import registers the backend.
"""

from __future__ import annotations

import os
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

from hindsight.rollout.weights import Layout, TensorMeta, checksum, unpack

BACKEND = "object_store"


class SharedCopy:
    """A copy of weights that other processes of this user on this machine can map.

    It is a memfd, so it disappears if this process is killed and does not depend on the size of /dev/shm. Its
    pages are written again by the next copy: new ones cost several times the copy itself.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("weights")

    def hold(self, flat: np.ndarray) -> str:
        """Replace what is held; return the path to map."""
        with open(self._descriptor, "wb", closefd=False) as file:
            file.seek(0)
            file.write(flat.data)
            file.truncate()
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"


@dataclass
class NoInit(WeightTransferInitInfo):
    """No settings: shared memory needs no rendezvous."""


@dataclass
class BufferUpdate(WeightTransferUpdateInfo):
    """Path and layout of the buffer, in plain types for vLLM's message encoding."""

    path: str
    layout: list[list[Any]]  # [name, shape, dtype] of each tensor


def update_info(path: str, layout: Layout) -> dict[str, Any]:
    """Create the update message for `ObjectStoreTransfer`."""
    return {"path": path, "layout": [[meta.name, list(meta.shape), meta.dtype] for meta in layout]}


class ObjectStoreTransfer(WeightTransferEngine[NoInit, BufferUpdate]):
    """Loads a full set of weights from shared memory through vLLM's layerwise reload."""

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
        self.checksum = ""

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Do nothing: there is nothing to set up."""

    def start_weight_update(self) -> None:
        """Prepare the model to load checkpoint tensors again."""
        self.checksum = ""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BufferUpdate) -> None:
        """Load all parameters. Raises ValueError if the buffer lacks any."""
        layout = tuple(TensorMeta(name, tuple(shape), dtype) for name, shape, dtype in update_info.layout)
        flat = np.memmap(update_info.path, dtype=np.uint8, mode="r")
        self.checksum = checksum(flat, layout)
        loaded = cast("Any", self.model).load_weights(unpack(flat, layout))
        if missing := sorted(self.parameters - loaded):
            raise ValueError(f"synced weights lack {len(missing)} of the engine's parameters: {missing[:8]}")

    def finish_weight_update(self) -> None:
        """Convert the tensors to the format that the kernels use."""
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_packed_head(self.model)

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


def refresh_packed_head(model: torch.nn.Module) -> None:
    """Pack the LM head again on CPU, since the reload does not update the head of tied embeddings.

    The CPU kernel uses a packed copy that is made when a layer's own tensors are loaded. A tied head has no
    tensors of its own, so it would keep computing logits with the old weights.
    """
    if not current_platform.is_cpu():
        return
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


class WeightsExtension:
    """Methods that vLLM adds to its worker for the engine to call."""

    weight_transfer_engine: Any

    def received_checksum(self) -> str:
        """Return the checksum of the last buffer that this worker loaded, or "" if there is none."""
        transfer = self.weight_transfer_engine
        return transfer.checksum if isinstance(transfer, ObjectStoreTransfer) else ""


WeightTransferEngineFactory.register_engine(BACKEND, ObjectStoreTransfer)
