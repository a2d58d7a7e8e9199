"""Weights from the learner's GPUs to the engines' GPUs by NCCL broadcast (`weight_sync.transport=nccl`).

Not yet run on a GPU: written after the code of vLLM 0.32's NCCL weight-transfer engines, which do the work.

One broadcast serves all engines: the learner's rank 0 is NCCL rank 0 and sends. The other learner ranks are
not in that group but gather with rank 0, since under ZeRO-3 a parameter is whole only where all take part.
`learner.group` drives ranks and engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import deepspeed
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferUpdateInfo


class GatheredSource(WeightSource):
    """Parameters, whole, one by one; under ZeRO-3 a collective over the learner's ranks."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """`parameters`: by the checkpoint's names, which are those that vLLM loads."""
        self.parameters = parameters

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and whole shapes, without gathering."""
        return [
            ParamMeta(name, parameter.dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in self.parameters.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.parameters.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                # The broadcast reads it after the gathered memory has been given back.
                whole = parameter.detach().clone()
            yield name, whole


class SilentClient:
    """vLLM's `VLLMWeightSyncClient`, which says nothing: the driver calls the engines.

    Rank 0 waits inside NCCL, where it could not hear that an engine failed.
    """

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The engines join by `Engine.init_transfer`, each at its own ranks; vLLM has one offset for all."""

    def start_weight_update(self) -> None:
        """By `Engine.start_update`."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """By `Engine.receive_update`."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """By `Engine.finish_update`, which names the version; vLLM's NCCL trainer names none."""


class Sender:
    """One learner rank's part in the broadcast."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], rank: int, meeting: Mapping[str, Any]) -> None:
        """Join the group; on rank 0 that ends when all engines have joined too.

        Args:
            meeting: settings of `NCCLTrainerInitInfo`, the same for ranks and engines.
        """
        self.source = GatheredSource(parameters)
        # vLLM's communicator would set a stream of its own as this process's current one, and DeepSpeed waits
        # only for what runs on the default stream.
        with torch.cuda.stream(torch.cuda.current_stream() if torch.cuda.is_available() else None):
            self.trainer = WeightTransferTrainerFactory.trainer_init(
                NCCLTrainerInitInfo(rank=rank, **meeting), client=SilentClient(), source=self.source
            )

    def message(self) -> dict[str, Any]:
        """What an engine has to know to receive: `NCCLWeightTransferUpdateInfo`, in plain types."""
        held = self.source.metadata()
        return asdict(
            NCCLWeightTransferUpdateInfo(
                names=[meta.name for meta in held],
                dtype_names=[str(meta.dtype).removeprefix("torch.") for meta in held],
                shapes=[list(meta.shape) for meta in held],
            )
        )

    def send(self) -> None:
        """Broadcast the current weights. Every rank calls it, while every engine receives."""
        self.trainer.send_weights()
