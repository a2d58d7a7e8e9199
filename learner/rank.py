"""One DeepSpeed rank as a Ray actor: it holds the model and the process group; decisions are elsewhere."""

from __future__ import annotations

import copy
import logging
import math
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
import torch

from configs.environ import actor_environment
from configs.schema import Config
from learner import losses
from learner.distil import Likelihoods, distil
from learner.logprobs import TokenLogprobs, TokenScores
from learner.pack import Batch, collate
from learner.rows import Row
from rollout.adapter import FOLDER, Adapter, Pair, named, write
from rollout.weights import Layout, WeightSet, describe, digest, pack

Piece = tuple[str, Sequence[Row], float]  # objective, rows of a micro-batch, scale of their summed loss


class LearnerError(RuntimeError):
    """The learner cannot go on; the message says why and what to change."""


def learner_env(config: Config, gpu: bool | None = None) -> dict[str, str]:
    """Environment variables of a rank's process. `gpu`: it has one; None asks this machine."""
    env = actor_environment(config.cluster.threads)
    return env if (torch.cuda.is_available() if gpu is None else gpu) else env | {"DS_ACCELERATOR": "cpu"}


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration. Micro-batches vary in number, so `update` steers accumulation."""
    learner = config.learner
    # Summing micro-batches in bfloat16 would round away small gradients; stage 0 refuses float32 sums.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if learner.zero_stage else {}
    return sums | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": learner.grad_clip,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        "zero_optimization": {"stage": learner.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
    }


class Rank:
    """One process of the learner. Every method but `address` is collective: all ranks call it together."""

    NAME: ClassVar[str] = "learner"  # in messages; and the folder that DeepSpeed makes inside a checkpoint's

    def __init__(self, config: Config, model: str, rank: int) -> None:
        """`model`: folder or hub name of a causal LM; `rank`: 0 … config.learner.ranks − 1."""
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.config, self.model, self.rank = config, model, rank
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.adapter: Adapter | None = None

    def address(self) -> tuple[str, int]:
        """This node's address and a free port, for rank 0 to host the rendezvous."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def start(self, host: str, port: int) -> tuple[int, int]:
        """Join the process group and load the model; returns its parameters and how many numbers it trains.

        Raises:
            AdapterError: the model cannot carry `learner.lora`.
        """
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.config.learner.ranks),
            LOCAL_RANK="0",
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        import deepspeed
        from transformers import AutoModelForCausalLM

        on_gpu = self.device.type == "cuda"
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", auto_mpi_discovery=False)
        lm = AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.config.model.dtype))
        if self.config.learner.checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        parameters = sum(parameter.numel() for parameter in lm.parameters())
        module = self._wrap(lm.train())
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        count = sum(parameter.numel() for parameter in trained)
        learner = self.config.learner
        optimizer = torch.optim.AdamW(trained, lr=learner.lr, weight_decay=learner.weight_decay, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=module.to(self.device), optimizer=optimizer, config=deepspeed_config(self.config)
        )
        return parameters, count

    def update(
        self, work: Sequence[Sequence[Piece]], strength: float, lr: float
    ) -> tuple[dict[str, dict[str, float]], float]:
        """One optimiser step per mini-batch.

        An adapter's dropout is on for imitation and distillation. The policy loss compares the policy with
        the one that acted, which had none: with dropout off their ratio is 1 before the first step. Old
        log-probs are without dropout, so with several steps distillation's importance ratio has its noise.

        Args:
            work: [mini-batch][micro-batch]: objective, rows, and what their summed loss is multiplied by. As
                many on every rank, with the same objectives in the same order, empty ones included.
            strength: λ of this step. lr: its learning rate.

        Returns:
            By objective, the sums of `learner.losses` over this rank's tokens; and the mean gradient norm.

        Raises:
            LearnerError: a loss or gradient is not finite; the weights are then not to be used.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.adapter:  # a resumed run goes on with the dropout that would have come
            torch.manual_seed(hash((self.config.seed, self.engine.global_steps, self.rank)))
        batches = [[collate(rows).to(self.device) for _, rows, _ in micros] for micros in work]
        old: list[list[torch.Tensor]] | None = None
        if len(work) > 1:
            with torch.no_grad():
                old = [[self._old(batch) for batch in micros] for micros in batches]
        parts: dict[str, list[dict[str, float]]] = defaultdict(list)
        norms = []
        for step, micros in enumerate(work):
            for index, (objective, _, scale) in enumerate(micros):
                self.engine.set_gradient_accumulation_boundary(index == len(micros) - 1)
                batch = batches[step][index]
                before = old[step][index] if old else None
                with self._dropout(objective != "policy"):
                    total, sums = self._loss(batch, before, objective, strength)
                    if not math.isfinite(sums["loss"]):
                        raise LearnerError(f"the loss is not finite: {self._advice()}")
                    # DeepSpeed averages gradients over ranks; a mean over all ranks' rows wants their sum.
                    self.engine.backward(total * (self.config.learner.ranks * scale))
                self.engine.step()
                parts[objective].append(sums)
            if micros:
                norms.append(float(self.engine.get_global_grad_norm()))
        if not all(math.isfinite(norm) for norm in norms):
            raise LearnerError(f"the gradient is not finite: {self._advice()}")
        merged = {objective: losses.merge(sums) for objective, sums in parts.items()}
        return merged, sum(norms) / len(norms)

    def candidates(self, micros: Sequence[Sequence[Row]], k: int) -> list[list[np.ndarray]]:
        """Per micro-batch and row, (P, k) int32: the likeliest tokens at each position, likeliest first."""
        answers = []
        for rows in micros:
            batch = collate(rows).to(self.device)
            with torch.no_grad():
                found = self._forward(batch, likeliest=k).candidates.cpu().numpy().astype(np.int32)
            cuts = np.cumsum([len(row.positions) for row in rows])[:-1]
            answers.append(np.split(found, cuts) if rows else [])
        return answers

    def score(self, ids: np.ndarray) -> np.ndarray:
        """(L − 1,) float32 log-probs of ids[1:] at temperature 1."""
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64)).to(self.device)
        cols = torch.arange(len(tokens) - 1, device=self.device)
        with torch.no_grad():
            made: TokenScores = self.engine(tokens[None], torch.zeros_like(cols), cols, tokens[1:])
        return made.logprobs.cpu().numpy()

    def export(self, version: int) -> WeightSet | None:
        """What is trained, in the object store: all weights, or the adapter; None on all ranks but 0."""
        if self.adapter is None:
            return self.export_merged(version)
        return self._put(version, named(self._pairs()).items())

    def export_merged(self, version: int) -> WeightSet | None:
        """All weights under the model's own names, an adapter merged into them in float32."""
        return self._put(version, self._parameters(), None if self.adapter else self.layout)

    def export_average(self, version: int, share: float) -> WeightSet | None:
        """Move the adapter's average by `share` of the way to the adapter; then `export` the average.

        Raises:
            LearnerError: no adapter is trained.
        """
        if self.adapter is None:
            raise LearnerError("the learner averages adapters only: set learner.lora.rank above 0")
        for name, pair in self.adapter.pairs.items():
            with self._whole(pair):
                self.adapter.follow(name, share)
        return self._put(version, named(self.adapter.average).items())

    def save(self, folder: str) -> None:
        """Write what is trained, an adapter's average, and optimiser state; every rank writes its part."""
        own = {"average": self.adapter.average} if self.adapter else {}
        self.engine.save_checkpoint(
            folder, self.NAME, own, save_latest=False, exclude_frozen_parameters=self.adapter is not None
        )

    def load(self, folder: str) -> None:
        """Take over what `save` wrote.

        Raises:
            LearnerError: there is nothing to load.
        """
        frozen = self.adapter is not None  # a frozen model is not saved
        path, own = self.engine.load_checkpoint(folder, tag=self.NAME, load_module_strict=not frozen)
        if path is None:
            raise LearnerError(f"no {self.NAME} state in {folder}: resume from a complete checkpoint")
        if self.adapter:
            self.adapter.average = own["average"]

    def save_model(self, folder: str) -> None:
        """Write a folder that transformers and vLLM load: weights, configuration, tokenizer.

        An adapter is merged into float32 weights, where nothing of it is lost, and written by itself beside
        them: loaded in bfloat16, they would be nearly the model that training began with.
        """
        weights, adapter = dict(self._parameters()), named(self._pairs())
        if self.rank:
            return
        from transformers import AutoTokenizer

        lm = self.engine.module.lm
        if self.adapter:
            weights = {name: weight.float() for name, weight in weights.items()}
            write(Path(folder) / FOLDER, adapter, self.config.learner.lora, base=self.model)
        lm.save_pretrained(folder, state_dict=weights)
        if self.adapter:
            saved = copy.deepcopy(lm.config)
            saved.dtype = torch.float32
            saved.save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.model).save_pretrained(folder)

    def _wrap(self, lm: Any) -> torch.nn.Module:
        """What this rank trains of the causal LM. `self.weights` is what it exports, under the LM's names."""
        self.weights = dict(lm.named_parameters())  # an adapter would rename them
        self.layout = tuple(describe(name, weight) for name, weight in self.weights.items())
        lora = self.config.learner.lora
        self.adapter = Adapter(lm, lora, self.config.seed) if lora.rank else None
        return TokenLogprobs(lm)

    def _forward(self, batch: Batch, likeliest: int = 0) -> TokenScores:
        """At the sampling temperature."""
        temperature = self.config.rollout.temperature
        made: TokenScores = self.engine(
            batch.ids, batch.rows, batch.cols, batch.targets, temperature, batch.candidates, likeliest
        )
        return made

    def _old(self, batch: Batch) -> torch.Tensor:
        """(P,) what the loss takes as old, by the weights before the first of several optimiser steps."""
        return self._forward(batch).logprobs

    def _loss(
        self, batch: Batch, old: torch.Tensor | None, objective: str, strength: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The objective's sum over one micro-batch and the sums of its statistics.

        Args:
            old: (P,) by `_old`; None in the only optimiser step, whose weights are the old ones.
        """
        made = self._forward(batch)
        old = made.logprobs.detach() if old is None else old
        if objective == "imitation":
            return losses.imitation(made.logprobs, made.entropy, batch.advantages)
        if objective == "distil":
            teacher = Likelihoods(batch.teacher, batch.teacher_candidates)
            return distil(Likelihoods(made.logprobs, made.candidates), teacher, old, self.config.distil)
        loss = self.config.loss
        weights = losses.token_weights(batch.rows, loss.aggregation)
        tokens = losses.Tokens(batch.advantages, old, batch.rollout, batch.teacher, batch.reference, weights)
        return losses.policy(made.logprobs, made.entropy, tokens, loss, strength, self.config.reweight.clip)

    def _advice(self) -> str:
        return f"lower {self.NAME}.lr and go on from a checkpoint"

    def _put(
        self, version: int, tensors: Iterable[tuple[str, torch.Tensor]], layout: Layout | None = None
    ) -> WeightSet | None:
        """Tensors in the object store, by rank 0. With their `layout` they are taken one by one."""
        if self.rank:
            for _ in tensors:  # gathering them may be for all ranks to do
                pass
            return None
        flat, layout = pack(tensors, layout)
        return WeightSet(version=version, layout=layout, digest=digest(flat), data=ray.put(flat))

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every full parameter on the CPU, under the model's own name; each rank must run it to its end.

        An adapter is merged into float32 copies of the weights that it adds to.
        """
        adapter = self.adapter
        for name, weight in self.weights.items():
            pair = adapter.pairs.get(name, ()) if adapter else ()
            with self._whole((weight, *pair)):
                full = adapter.merged(name, weight) if adapter and pair else weight.detach()
                # A gathered parameter is freed on leaving the block, so it is copied.
                full = full.to("cpu", copy=self._sharded)
            yield name, full

    def _pairs(self) -> dict[str, Pair]:
        """The adapter's full A and B on the CPU; every rank must call it."""
        pairs: dict[str, Pair] = {}
        for name, (a, b) in self.adapter.pairs.items() if self.adapter else ():
            with self._whole((a, b)):
                pairs[name] = (a.detach().to("cpu", copy=True), b.detach().to("cpu", copy=True))
        return pairs

    def _whole(self, parameters: Sequence[torch.Tensor]) -> Any:
        """A block in which these parameters are full: ZeRO 3 holds them in shares."""
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters), enabled=self._sharded)

    @property
    def _sharded(self) -> bool:
        return self.config.learner.zero_stage == 3

    def _dropout(self, on: bool) -> AbstractContextManager[None]:
        """Of the adapter, where there is one."""
        return self.adapter.dropout(on) if self.adapter else nullcontext()
