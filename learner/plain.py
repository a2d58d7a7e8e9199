"""A rank of the policy in plain PyTorch, alone in its process: for `hindsight replay`.

It has the interface of DeepSpeed's engine with ZeRO stage 0 as far as `learner.rank` and `learner.rank_state`
use it, so losses, plans and checkpoints are those of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hindsight.learner.policy import PolicyRank


class PlainOptimizer:
    """AdamW on float32 copies of the weights."""

    def __init__(self, weights: Sequence[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        copies = [torch.nn.Parameter(weight.detach().float().clone()) for weight in weights]
        self.fp16_groups, self.fp32_groups = [list(weights)], [copies]
        self.optimizer = torch.optim.AdamW(copies, lr=lr, weight_decay=weight_decay, fused=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """AdamW's own."""
        return self.optimizer.param_groups

    def pairs(self) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """Each weight with its float32 copy."""
        return list(zip(self.fp16_groups[0], self.fp32_groups[0], strict=True))


class PlainEngine:
    """A module and its optimizer. Gradients are summed in float32."""

    def __init__(self, module: torch.nn.Module, optimizer: PlainOptimizer, max_grad_norm: float) -> None:
        """`max_grad_norm`: 0 clips nothing."""
        self.module, self.optimizer, self.max_grad_norm = module, optimizer, max_grad_norm
        self.global_steps, self.norm, self.last = 0, 0.0, True

    def __call__(self, *args: Any) -> Any:
        """The module's forward pass."""
        return self.module(*args)

    def zero_optimization_stage(self) -> int:
        """Nothing is divided among ranks."""
        return 0

    def set_gradient_accumulation_boundary(self, last: bool) -> None:
        """Whether the coming micro-batch is the last one before an optimizer step."""
        self.last = last

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a micro-batch."""
        loss.backward()
        for weight, copy in self.optimizer.pairs():
            if weight.grad is not None:
                own = weight.grad.float()
                copy.grad = own if copy.grad is None else copy.grad + own
                weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One optimizer step, after the last micro-batch."""
        if not self.last:
            return
        copies = self.optimizer.fp32_groups[0]
        most = self.max_grad_norm or float("inf")
        self.norm = float(torch.nn.utils.clip_grad_norm_(copies, most))
        self.optimizer.optimizer.step()
        self.optimizer.optimizer.zero_grad()
        for weight, copy in self.optimizer.pairs():
            weight.copy_(copy)
        self.global_steps += 1

    def get_global_grad_norm(self) -> float:
        """The gradient's norm at the last step, before it was clipped."""
        return self.norm

    def empty_partition_cache(self) -> None:
        """Nothing is divided."""


class PlainRank(PolicyRank):
    """The policy's only rank. Sum its gradients as `learner.ranks=1`."""

    def start(self, host: str = "", port: int = 0) -> tuple[int, int, str]:
        """Load the model; no process group is joined."""
        module, trained, parameters = self._open()
        module.to(self.device)
        learner = self.config.learner
        optimizer = PlainOptimizer(trained, learner.lr, learner.weight_decay)
        self.engine = PlainEngine(module, optimizer, learner.max_grad_norm)
        return parameters, sum(parameter.numel() for parameter in trained), self.alone
