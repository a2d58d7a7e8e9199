"""One DeepSpeed rank as a Ray actor: a model and the process group. Decisions are made elsewhere.

Subclasses define the model and its losses: `learner.policy` and `learner.critic`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
import torch
from torch.distributed import TCPStore

from hindsight.configs.environ import Named, actor_environment
from hindsight.configs.schema import Config
from hindsight.learner import losses, rank_state
from hindsight.learner.batching import Batch, collate
from hindsight.learner.compiled import load_collectives
from hindsight.learner.packing import enable_packing
from hindsight.learner.samples import TrainingSample
from hindsight.rollout.device import find_device

Piece = tuple[
    losses.Objective, Sequence[TrainingSample], float
]  # loss, samples of a micro-batch, scale of their sum


class LearnerError(RuntimeError):
    """The learner cannot continue; the message says why and what to change."""


class RanksLost(LearnerError):
    """A rank has ended or does not answer: all ranks must start again, from a checkpoint."""


def learner_env(config: Config, gpu: bool) -> dict[str, str]:
    """Environment variables of a rank's process. `gpu`: whether it has one."""
    env = actor_environment(config.cluster.threads)
    # Ray hides a node's GPUs only from actors that were given some.
    return env if gpu else env | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's configuration. The number of micro-batches varies, so `update` controls accumulation."""
    learner = config.learner
    # Summing micro-batches in bfloat16 would round away small gradients; stage 0 does not support float32.
    sums: dict[str, Any] = {"data_types": {"grad_accum_dtype": "fp32"}} if learner.zero_stage else {}
    if learner.zero_stage == 1:  # or the sum over ranks would be in bfloat16 again
        sums["communication_data_type"] = "fp32"
    return sums | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_optimization": {"stage": learner.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
    }


class Rank(Named, ABC):
    """One process. Every method except `address` and `host` is collective: all ranks must call it."""

    NAME: ClassVar[str]  # in messages, and of DeepSpeed's folder in a checkpoint

    def __init__(self, config: Config, model: str, rank: int) -> None:
        """`model`: folder or hub name of a causal LM; `rank`: 0 … config.learner.ranks − 1."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.config, self.model, self.rank = config, model, rank
        self.device = torch.device(find_device())
        self.kept: dict[str, torch.Tensor] = {}  # saved in checkpoints in addition to the weights

    def address(self) -> tuple[str, int]:
        """This node's address and a free port."""
        with self._listener() as free:
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def host(self) -> tuple[str, int]:
        """Host the rendezvous of all ranks, as rank 0; returns its address and port.

        It listens on this node's address alone, which in a local run is the loopback interface's.
        """
        listener = self._listener()
        address, port = ray.util.get_node_ip_address(), listener.getsockname()[1]
        self.store = TCPStore(
            address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        return address, port

    @staticmethod
    def _listener() -> socket.socket:
        address = ray.util.get_node_ip_address()
        return socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )

    def start(self, host: str, port: int) -> tuple[int, int, str]:
        """Join the process group and load the model; return its parameters, how many numbers it trains, and
        why it cannot read packed rows, or "".

        Raises:
            AdapterError: the model cannot carry `learner.lora`.
        """
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.learner.ranks),
            LOCAL_RANK="0",
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # rank 0 hosts the store already
        )
        if host == "127.0.0.1":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import deepspeed

        on_gpu = self.device.type == "cuda"
        if not on_gpu:
            load_collectives()
        deepspeed.init_distributed(
            dist_backend="nccl" if on_gpu else "gloo",
            auto_mpi_discovery=False,
            timeout=timedelta(seconds=self.config.learner.timeout),
        )
        module, trained, parameters = self._open()
        count = sum(parameter.numel() for parameter in trained)
        learner = self.config.learner
        optimizer = torch.optim.AdamW(trained, lr=learner.lr, weight_decay=learner.weight_decay, fused=True)
        settings = deepspeed_config(self.config)
        if self._sharded:  # parameter by parameter: the whole model might not fit on one GPU
            deepspeed.zero.Init(module=module, mem_efficient_linear=False, config_dict_or_path=settings)
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.device)
        else:
            module.to(self.device)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        return parameters, count, self.alone

    def _open(self) -> tuple[torch.nn.Module, list[torch.nn.Parameter], int]:
        """Load the model; return it as it is trained, its trained parameters, and how many it has in all."""
        from transformers import AutoModelForCausalLM

        lm = AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.config.model.dtype))
        if self.config.learner.gradient_checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.alone = enable_packing(lm, self.device)
        parameters = sum(parameter.numel() for parameter in lm.parameters())
        module = self._wrap(lm.train())
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return module, trained, parameters

    def update(
        self, work: Sequence[Sequence[Piece]], strength: float, lr: float
    ) -> tuple[dict[losses.Objective, dict[str, float]], float]:
        """One optimizer step per mini-batch.

        Args:
            work: [mini-batch][micro-batch]: loss, samples, and what their sum is multiplied by. As many
                on every rank, with the same losses in the same order, empty ones included.
            strength: λ of this step. lr: its learning rate.

        Returns:
            By loss, the sums of `learner.losses` over this rank's tokens; and the mean gradient norm.

        Raises:
            LearnerError: a loss or gradient is not finite; the weights are then not to be used.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        # A resumed run continues with the same dropout.
        torch.manual_seed(hash((self.config.seed, self.engine.global_steps, self.rank)))
        batches = [[collate(samples).to(self.device) for _, samples, _ in micros] for micros in work]
        with (
            torch.no_grad()
        ):  # of the first mini-batch, its own pass gives them: the weights are the old ones
            old = [
                [self._old(batch, piece[0]) for batch, piece in zip(held, micros, strict=True)]
                for held, micros in zip(batches[1:], work[1:], strict=True)
            ]
        parts: dict[losses.Objective, list[dict[str, float]]] = defaultdict(list)
        norms = []
        for step, micros in enumerate(work):
            for index, (objective, _, scale) in enumerate(micros):
                self.engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
                batch = batches[step][index]
                before = old[step - 1][index] if step else None
                with self._training(objective):
                    total, sums = self._loss(batch, before, objective, strength)
                    if not math.isfinite(sums["loss"]):
                        raise LearnerError(f"the loss is not finite: {self._advice(objective)}")
                    # DeepSpeed averages gradients over ranks; a mean over all ranks' samples needs their sum.
                    self.engine.backward(total * (self.config.learner.ranks * scale))
                self.engine.step()
                parts[objective].append(sums)
            if micros:
                norms.append(float(self.engine.get_global_grad_norm()))
        if not all(math.isfinite(norm) for norm in norms):
            raise LearnerError(f"the gradient is not finite: {self._advice(objective)}")
        merged = {objective: losses.merge(sums) for objective, sums in parts.items()}
        return merged, sum(norms) / len(norms)

    def reset_optimizer(self) -> None:
        """Reset the optimizer's moments and step count."""
        for state in self.engine.optimizer.optimizer.state.values():
            for moment in state.values():
                moment.zero_()

    def to_host(self) -> None:
        """Leave the GPU: weights, gradients and optimizer state go to the host."""
        if self.device.type == "cuda":
            self.engine.offload_states()
            self._move_frozen("cpu")
            torch.cuda.empty_cache()

    def to_device(self) -> None:
        """Come back to the GPU."""
        if self.device.type == "cuda":
            self._move_frozen(self.device)
            self.engine.reload_states()

    def _move_frozen(self, device: torch.device | str) -> None:
        """Move the weights below an adapter, which DeepSpeed does not know."""
        for parameter in self.engine.module.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(device)

    def save(self, folder: str) -> None:
        """Write this rank's part of what is trained and of the optimizer's state, and `kept`."""
        rank_state.save_rank_state(self.engine, Path(folder, self.NAME), self.rank, self.kept)

    def load(self, folder: str) -> None:
        """Load what `save` wrote.

        Raises:
            CheckpointError: the folder has no state of this model.
        """
        rank_state.load_rank_state(self.engine, Path(folder, self.NAME), self.rank, self.kept)

    def _by_sample(
        self, micros: Sequence[Sequence[TrainingSample]], ask: Callable[[Batch], torch.Tensor]
    ) -> list[list[np.ndarray]]:
        """Per micro-batch and sample, (P, …) what the model says of the sample's tokens."""
        answers = []
        with self._reading():
            for samples in micros:
                found = ask(collate(samples).to(self.device)).cpu().numpy()
                cuts = np.cumsum([len(one.positions) for one in samples])[:-1]
                answers.append(np.split(found, cuts) if samples else [])
        return answers

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Forward passes without gradients.

        ZeRO 3 then prefetches what a backward pass would need first, and GatheredParameters fails on a
        parameter in flight, so all are released at the end.
        """
        with torch.no_grad():
            yield
        self.engine.empty_partition_cache()

    @abstractmethod
    def _wrap(self, lm: Any) -> torch.nn.Module:
        """What this rank trains of the causal LM."""

    @abstractmethod
    def _old(self, batch: Batch, objective: losses.Objective) -> torch.Tensor:
        """(P,) what the loss takes as old, by the weights before the first of several optimizer steps."""

    @abstractmethod
    def _loss(
        self, batch: Batch, old: torch.Tensor | None, objective: losses.Objective, strength: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss's sum over one micro-batch and the sums of its statistics.

        Args:
            old: (P,) by `_old`; None in the first optimizer step, whose weights are the old ones.
        """

    def _training(self, objective: losses.Objective) -> AbstractContextManager[None]:
        """Prepare the model for a loss while the block runs."""
        return nullcontext()

    def _advice(self, objective: losses.Objective) -> str:
        if objective == "sft":
            return "lower sft.lr and begin again"
        return f"lower {self.NAME}.lr and resume from a checkpoint"

    def _whole(self, parameters: Sequence[torch.Tensor]) -> Any:
        """A block in which these parameters are full: ZeRO 3 holds them in shares."""
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters), enabled=self._sharded)

    @property
    def _sharded(self) -> bool:
        return self.config.learner.zero_stage == 3
