"""Weights from the learner's GPUs to the engines' GPUs by NCCL broadcast (`publish.transport=nccl`).

Not yet run on a GPU: written after the code of vLLM 0.32's NCCL weight-transfer engines, which do the work.

One broadcast serves all engines: the learner's rank 0 is NCCL rank 0, and the workers of engine i are ranks
1 + i·tensor_parallel and up. Every learner rank calls `send`, since under ZeRO-3 gathering a parameter needs
all of them. Then `learner.publish.verify` with an empty digest (no bytes are hashed on this way) scores the
canary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from deepspeed.zero import GatheredParameters
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo


class GatheredSource(WeightSource):
    """A module's parameters, whole, one by one; under ZeRO-3 a collective over the learner's ranks."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.parameters = list(module.named_parameters())

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and whole shapes, without gathering."""
        return [ParamMeta(n, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for n, p in self.parameters]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.parameters:
            with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                # The broadcast reads it after the gathered memory has been given back.
                whole = parameter.detach().clone()
            yield name, whole


class EngineClient:
    """vLLM's `VLLMWeightSyncClient` over independent engine actors.

    vLLM's own Ray client sends all of them the same rank offset: they would claim the same NCCL rank.
    """

    def __init__(self, engines: Sequence[Any], tensor_parallel: int) -> None:
        self.engines = engines
        self.tensor_parallel = tensor_parallel
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join the group, each at its own ranks."""
        first = init_info["rank_offset"]
        ray.get(
            [
                engine.init_transfer.remote(init_info | {"rank_offset": first + i * self.tensor_parallel})
                for i, engine in enumerate(self.engines)
            ]
        )

    def start_weight_update(self) -> None:
        """Freeze all engines."""
        ray.get([engine.start_update.remote() for engine in self.engines])

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let all engines receive; returns when the broadcast is over."""
        ray.get([engine.receive_update.remote(update_info) for engine in self.engines])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Take the weights over as `version`, which vLLM's NCCL engine does not pass on."""
        ray.get([engine.finish_update.remote(self.version) for engine in self.engines])


class NcclPublisher:
    """One learner rank's part in the broadcast."""

    def __init__(
        self,
        module: torch.nn.Module,
        engines: Sequence[Any],
        *,
        rank: int,
        tensor_parallel: int,
        address: str,
        port: int,
    ) -> None:
        """Meet the engines at `address:port` of learner rank 0. `module`'s names are the checkpoint's."""
        self.client = EngineClient(engines, tensor_parallel)
        world = 1 + len(engines) * tensor_parallel
        self.trainer = WeightTransferTrainerFactory.trainer_init(
            NCCLTrainerInitInfo(rank=rank, master_address=address, master_port=port, world_size=world),
            client=self.client,
            source=GatheredSource(module),
        )

    def send(self, version: int) -> None:
        """Broadcast the current weights to all engines as `version`. Every rank calls it."""
        self.client.version = version
        self.trainer.send_weights()
