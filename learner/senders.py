"""A learner rank's part in sending weights to engines on GPUs, by vLLM's trainers for NCCL and CUDA IPC.

Not yet run on a GPU: written after the code of vLLM 0.32's weight-transfer engines, which do the work. The
driver calls ranks and engines: `learner.weight_sync_nccl`, `learner.weight_sync_ipc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from hindsight.rollout.weights import Layout, digest_of_sums, word_sum

INFOS: dict[str, type[TrainerInitInfo]] = {"nccl": NCCLTrainerInitInfo, "ipc": IPCTrainerInitInfo}


class GatheredSource(WeightSource):
    """Whole parameters, one by one, and the sum of each; under ZeRO-3 a collective over the ranks."""

    def __init__(
        self, layout: Layout, read: Callable[[], Iterator[tuple[str, torch.Tensor]]], borrowed: bool
    ) -> None:
        """
        Args:
            layout: names are those of the checkpoint, which vLLM loads.
            read: yields what `layout` describes.
            borrowed: whether a parameter is freed when the next one is taken.
        """
        self.layout, self.read, self.borrowed = layout, read, borrowed
        self.sums: list[torch.Tensor] = []  # of the last pass

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and whole shapes, without gathering."""
        return [ParamMeta(meta.name, getattr(torch, meta.dtype), meta.shape) for meta in self.layout]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.sums = []
        for name, parameter in self.read():
            whole = parameter.clone() if self.borrowed else parameter  # it is read later than it is yielded
            self.sums.append(word_sum(whole))
            yield name, whole


class SilentClient:
    """vLLM's `VLLMWeightSyncClient`, that sends no requests to the engines; the driver does.

    Rank 0 waits inside NCCL, where it could not hear that an engine failed.
    """

    def __init__(self) -> None:
        self.update: Mapping[str, Any] = {}  # what an engine needs for the last update

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The engines join by `Engine.init_transfer`, each at its own ranks; vLLM has one offset for all."""

    def start_weight_update(self) -> None:
        """Do nothing: the driver calls `Engine.start_update`."""

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Keep what `Engine.receive_update` needs, which the driver calls."""
        assert isinstance(update_info, dict)
        self.update = update_info

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Do nothing: the driver calls `Engine.finish_update` with the version, which vLLM does not know."""


class Sender:
    """One rank's end of a transport."""

    def __init__(self, source: GatheredSource, transport: str, rank: int, meeting: Mapping[str, Any]) -> None:
        """Get ready; by NCCL, on rank 0 that ends when all engines have joined too.

        Args:
            meeting: settings of vLLM's trainer, the same for ranks and engines.
        """
        self.source, self.client = source, SilentClient()
        # vLLM's communicator would set a stream of its own as this process's current one, and DeepSpeed waits
        # only for what runs on the default stream.
        with torch.cuda.stream(torch.cuda.current_stream() if torch.cuda.is_available() else None):
            self.trainer = WeightTransferTrainerFactory.trainer_init(
                INFOS[transport](rank=rank, **meeting), client=self.client, source=source
            )

    def message(self) -> dict[str, Any]:
        """What an engine has to know to receive by NCCL, in plain types."""
        layout = self.source.layout
        return {
            "names": [meta.name for meta in layout],
            "dtype_names": [meta.dtype for meta in layout],
            "shapes": [list(meta.shape) for meta in layout],
        }

    def send(self) -> tuple[dict[str, Any], str]:
        """Send the current weights. Every rank calls it; by NCCL, while every engine receives.

        Returns:
            What engines need to receive, by CUDA IPC with handles of the parameters' memory, which are valid
            until the parameters change; and the checksum of what was sent. Rank 0's count.
        """
        self.trainer.send_weights()
        return dict(self.client.update), digest_of_sums(self.source.sums)
