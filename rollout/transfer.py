"""The receiving end of each transport in vLLM's workers, as backends of vLLM's weight-transfer API.

Each sums every tensor that arrives and refuses an update that lacks parameters; `Received` adds that to
vLLM's own backends for NCCL and CUDA IPC, which have not been run on a GPU. vLLM imports this module in its
workers because it contains the worker extension; the import registers the backends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from hindsight.rollout.segment import SegmentHandle, attach
from hindsight.rollout.weights import Layout, TensorMeta, digest_of_sums, unpack_tensors, word_sum


class Summing:
    """A vLLM model that sums each tensor before it loads it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sums: list[torch.Tensor] = []
        self.loaded: set[str] = set()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load tensors by the checkpoint's names; return the model's names of the loaded parameters."""
        loaded: set[str] = self.model.load_weights(self._summed(weights))
        self.loaded |= loaded
        return loaded

    def _summed(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self.sums.append(word_sum(tensor))
            yield name, tensor


class Received(WeightTransferEngine[Any, Any]):
    """What every transport adds to an engine of vLLM that receives weights; it comes before it as a base."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parameters = {name for name, _ in self.model.named_parameters()}
        self.checksum = ""  # of the last update, as `weights.digest`

    def start_weight_update(self) -> None:
        """Prepare the model to load checkpoint tensors again."""
        self.checksum, self.summing = "", Summing(self.model)
        super().start_weight_update()  # type: ignore[safe-super]

    def receive_weights(self, update_info: Any) -> None:
        """Load the tensors of an update, or of a part of it."""
        own: Any = self
        model, own.model = own.model, self.summing
        try:
            super().receive_weights(update_info)  # type: ignore[safe-super]
        finally:
            own.model = model

    def finish_weight_update(self) -> None:
        """Convert the tensors to the format that the kernels use. Raises ValueError if any are missing."""
        if missing := sorted(self.parameters - self.summing.loaded):
            raise ValueError(f"synced weights lack {len(missing)} of the engine's parameters: {missing[:8]}")
        super().finish_weight_update()  # type: ignore[safe-super]
        refresh_packed_head(self.model)
        self.checksum = digest_of_sums(self.summing.sums)


@dataclass
class NoInit(WeightTransferInitInfo):
    """No settings: shared memory needs no rendezvous."""


@dataclass
class SegmentUpdate(WeightTransferUpdateInfo):
    """Handle and layout of a segment, in plain types for vLLM's message encoding."""

    handle: dict[str, Any]  # the fields of a `SegmentHandle`
    layout: list[list[Any]]  # [name, shape, dtype] of each tensor


def update_info(handle: SegmentHandle, layout: Layout) -> dict[str, Any]:
    """Create the update message for `SegmentTransfer`."""
    tensors = [[meta.name, list(meta.shape), meta.dtype] for meta in layout]
    return {"handle": asdict(handle), "layout": tensors}


class Mapped(WeightTransferEngine[NoInit, SegmentUpdate]):
    """Loads a full set of weights from a segment through vLLM's layerwise reload."""

    init_info_cls = NoInit
    update_info_cls = SegmentUpdate

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Do nothing: there is nothing to set up."""

    def start_weight_update(self) -> None:
        """Prepare the model to load checkpoint tensors again."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SegmentUpdate) -> None:
        """Load all tensors."""
        layout = tuple(TensorMeta(name, tuple(shape), dtype) for name, shape, dtype in update_info.layout)
        self.model.load_weights(unpack_tensors(attach(SegmentHandle(**update_info.handle)), layout))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        """Convert the tensors to the format that the kernels use."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Do nothing: there is nothing to release."""


class SegmentTransfer(Received, Mapped):
    """Shared memory (`weight_sync.transport=object_store`)."""


class NcclTransfer(Received, NCCLWeightTransferEngine):
    """NCCL from GPU to GPU."""


class IpcTransfer(Received, IPCWeightTransferEngine):
    """CUDA IPC within a GPU."""


BACKENDS: dict[str, type[Received]] = {
    "object_store": SegmentTransfer,
    "nccl": NcclTransfer,
    "ipc": IpcTransfer,
}


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

    weight_transfer_engine: Received

    def received_checksum(self) -> str:
        """Return the checksum of the tensors that this worker loaded last, or "" if there are none."""
        return self.weight_transfer_engine.checksum


for transport, kind in BACKENDS.items():
    WeightTransferEngineFactory.register_engine(f"hindsight_{transport}", kind)  # vLLM has an "nccl" too
