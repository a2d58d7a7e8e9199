"""PPO's critic: the student's architecture with a value head, trained by its own DeepSpeed ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hindsight.learner import losses
from hindsight.learner.batching import Batch
from hindsight.learner.gae import GaeSettings, fit
from hindsight.learner.group import RankGroup
from hindsight.learner.packing import PackedRows, hidden_states
from hindsight.learner.rank import Rank
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.segment import fetch
from hindsight.rollout.weights import WeightSet, unpack_tensors


class ValueHead(nn.Module):
    """Maps hidden states to V in float32, whatever the weights' type. It starts at V = 0."""

    def __init__(self, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P, H) -> (P,) float32."""
        # bfloat16 cannot distinguish a return of 10 from one of 10.03.
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())[:, 0]


class TokenValues(nn.Module):
    """A causal LM without its output layer, and a value head. Names in the trunk are the LM's own."""

    def __init__(self, lm: Any) -> None:
        """`lm`: a transformers causal LM."""
        super().__init__()
        self.trunk_name = lm.base_model_prefix
        self.add_module(self.trunk_name, lm.base_model)
        self.value_head = ValueHead(lm.config.get_text_config().hidden_size, lm.dtype)

    def forward(self, rows: PackedRows, places: torch.Tensor) -> torch.Tensor:
        """(P,) float32 V of the states that end with the tokens at `places`; see `TokenLogprobs`."""
        hidden = hidden_states(getattr(self, self.trunk_name), rows)
        values: torch.Tensor = self.value_head(hidden[places])
        return values


class CriticRank(Rank):
    """One process of the critic."""

    NAME = "critic"

    def values(self, micros: Sequence[Sequence[TrainingSample]]) -> list[list[np.ndarray]]:
        """Per micro-batch and sample, (P,) float32 V of the state from which each position was sampled."""
        return self._by_sample(micros, self._values)

    def load_weights(self, weights: WeightSet) -> None:
        """Copy the student's trunk."""
        import deepspeed

        tensors = dict(unpack_tensors(fetch(weights), weights.layout))
        for name, parameter in self.engine.module.named_parameters():
            if name.startswith("value_head."):
                continue
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._sharded):
                if self.rank == 0 or not self._sharded:
                    parameter.data.copy_(tensors[name])
        self.engine.optimizer.refresh_fp32_params()  # the optimizer has its own float32 copies

    def _wrap(self, lm: Any) -> nn.Module:
        assert isinstance(self.config.credit, GaeSettings)
        self.credit = self.config.credit
        return TokenValues(lm)

    def _values(self, batch: Batch) -> torch.Tensor:
        values: torch.Tensor = self.engine(batch.packed, batch.places)
        return values

    def _old(self, batch: Batch, objective: losses.Objective) -> torch.Tensor:
        return batch.values

    def _loss(
        self, batch: Batch, old: torch.Tensor | None, objective: losses.Objective, strength: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        old = batch.values if old is None else old
        return losses.value(self._values(batch), old, batch.returns, self.credit.value_clip)


class CriticGroup(RankGroup):
    """The critic's ranks: as many as the learner's, sharded in the same way."""

    RANK = CriticRank
    OBJECTIVES = ("value",)

    @property
    def peak_lr(self) -> float:
        """Its peak learning rate."""
        assert isinstance(self.config.credit, GaeSettings)
        return self.config.credit.critic_lr

    async def values(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Per sample, (P,) float32 V of the state from which each position was sampled."""
        return await self._per_sample("values", samples)

    async def fit(self, samples: Sequence[TrainingSample], lr: float) -> dict[str, float]:
        """Train V toward the samples' returns; return the statistics of `update`, and how V fit before.

        Args:
            samples: with values and returns.
        """
        stats = await self.update({"value": samples}, 0.0, lr)
        return {name: figure for name, figure in stats.items() if name != "strength"} | fit(samples)

    async def load_weights(self, weights: WeightSet) -> None:
        """Copy the student's trunk; the head is unchanged."""
        await self._same("load_weights", weights)
