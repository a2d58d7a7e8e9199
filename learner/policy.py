"""A rank of the policy: a causal LM or its adapter, its losses, and the export of its weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from hindsight.learner import losses, packing
from hindsight.learner.batching import Batch
from hindsight.learner.distill import Likelihoods
from hindsight.learner.logprobs import TokenLogprobs, TokenScores
from hindsight.learner.rank import LearnerError, Rank
from hindsight.learner.samples import TrainingSample
from hindsight.learner.signals import make_signal
from hindsight.rollout.adapter import FOLDER, Adapter, LowRank, peft_names, write_adapter
from hindsight.rollout.segment import Segment
from hindsight.rollout.weights import Layout, WeightSet, meta_of, offsets, pack_tensors

if TYPE_CHECKING:
    from hindsight.learner.senders import Sender


class PolicyRank(Rank):
    """One process of the learner, which trains a causal LM or an adapter of it."""

    NAME = "learner"
    adapter: Adapter | None
    sender: Sender

    def candidates(self, micros: Sequence[Sequence[TrainingSample]], k: int) -> list[list[np.ndarray]]:
        """Per micro-batch and sample, (P, k) int32: the most likely tokens at each position, in order."""
        return self._by_sample(micros, lambda batch: self._forward(batch, "signal", k).candidates.int())

    def score(self, ids: np.ndarray) -> np.ndarray:
        """(L − 1,) float32 log-probs of ids[1:] at temperature 1."""
        rows = packing.pack_rows([ids])[0].to(self.device)
        places = torch.arange(len(ids) - 1, device=self.device)
        with self._reading():
            made: TokenScores = self.engine(rows, places, rows.ids[1:])
        return made.logprobs.cpu().numpy()

    def export(self, version: int, kept: Collection[int] = (), copied: bool = True) -> WeightSet | None:
        """Share what is trained: all weights in shared memory, or the adapter. None unless rank 0.

        Args:
            kept: versions that others still read from shared memory; the next free segment is written.
            copied: whether a copy goes into the object store, as an adapter always does.

        Raises:
            SegmentError: there is not enough memory.
        """
        if self.adapter is not None:
            return self._put(version, peft_names(self._pairs()).items())
        if self.rank:
            return self._put(version, self._parameters())
        free = [old for old in self.segments if old == version or old not in kept]
        segment = self.segments.pop(max(free)) if free else Segment(offsets(self.layout)[-1])
        packed = pack_tensors(self._parameters(), self.layout, segment.data)
        self.segments[version] = segment
        data = ray.put(packed.flat) if copied else None
        return WeightSet(version, packed.layout, packed.checksum, data, segment.handle)

    def export_merged(self, version: int) -> WeightSet | None:
        """Put all weights into the object store, with an adapter merged in float32."""
        merged = self.adapter.pairs if self.adapter else {}
        layout = (replace(meta, dtype="float32") if meta.name in merged else meta for meta in self.layout)
        return self._put(version, self._parameters(), tuple(layout))

    def export_average(self, version: int, share: float) -> WeightSet | None:
        """Move the adapter's average by `share` toward the adapter; then export the average.

        Raises:
            LearnerError: no adapter is trained.
        """
        if self.adapter is None:
            raise LearnerError("the learner averages adapters only: set learner.lora.rank above 0")
        for name, pair in self.adapter.pairs.items():
            with self._whole(pair):
                self.adapter.follow(name, share)
        return self._put(version, peft_names(self.adapter.average).items())

    def join(self, meeting: dict[str, Any]) -> dict[str, Any]:
        """Get ready to send all weights to engines on GPUs; return what an engine needs to receive them.

        Args:
            meeting: see `learner.senders.Sender`.
        """
        from hindsight.learner.senders import GatheredSource, Sender  # vLLM, which only GPUs need here

        source = GatheredSource(self.layout, self._parameters, borrowed=self._sharded)
        self.sender = Sender(source, self.config.weight_sync.transport, self.rank, meeting)
        return self.sender.message()

    def send(self) -> tuple[dict[str, Any], str]:
        """Send all weights to the engines' GPUs; after `join`. See `learner.senders.Sender.send`."""
        return self.sender.send()

    def save_model(self, folder: str) -> None:
        """Write a folder that transformers and vLLM load: weights, configuration, tokenizer.

        An adapter is merged into float32 weights, where nothing of it is lost, and written by itself next to
        them: loaded in bfloat16, they would be nearly the model that training began with.
        """
        if self.rank:
            for _ in self._parameters():  # all ranks gather, rank 0 keeps
                pass
            self._pairs()
            return
        # A gathered parameter is freed when the next one comes, so copy it.
        weights = {name: one.to("cpu", copy=self._sharded) for name, one in self._parameters()}
        adapter = peft_names(self._pairs())
        from transformers import AutoTokenizer

        lm = self.engine.module.lm
        if self.adapter:
            weights = {name: weight.float() for name, weight in weights.items()}
            write_adapter(Path(folder) / FOLDER, adapter, self.config.learner.lora, base=self.model)
        lm.save_pretrained(folder, state_dict=weights)
        if self.adapter:
            saved = copy.deepcopy(lm.config)
            saved.dtype = torch.float32
            saved.save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.model).save_pretrained(folder)

    def _wrap(self, lm: Any) -> torch.nn.Module:
        """Wrap the LM; `self.weights` is what is exported, under the LM's names."""
        self.weights = dict(lm.named_parameters())  # an adapter would rename them
        self.layout = tuple(meta_of(name, weight) for name, weight in self.weights.items())
        self.segments: dict[int, Segment] = {}  # of exports, by version
        self.signal = make_signal(self.config.signal)
        lora = self.config.learner.lora
        self.adapter = Adapter(lm, lora, self.config.seed) if lora.rank else None
        self.kept = peft_names(self.adapter.average) if self.adapter else {}
        return TokenLogprobs(lm)

    def _forward(self, batch: Batch, objective: losses.Objective, likeliest: int = 0) -> TokenScores:
        """Run the model at the sampling temperature, or at the teacher signal's own."""
        config = self.config
        own = config.signal.temperature if objective == "signal" else None
        temperature = own or config.rollout.temperature
        made: TokenScores = self.engine(
            batch.packed, batch.places, batch.targets, temperature, batch.candidates, likeliest
        )
        return made

    def _old(self, batch: Batch, objective: losses.Objective) -> torch.Tensor:
        return self._forward(batch, objective).logprobs

    def _loss(
        self, batch: Batch, old: torch.Tensor | None, objective: losses.Objective, strength: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        made = self._forward(batch, objective)
        old = made.logprobs.detach() if old is None else old
        if objective == "sft":
            return losses.sft_loss(made.logprobs, made.entropy, batch.advantages)
        if objective == "signal":
            teacher = Likelihoods(batch.teacher, batch.teacher_candidates)
            student = Likelihoods(made.logprobs, made.candidates)
            return losses.signal_loss(student, teacher, old, self.signal)
        loss = self.config.loss
        weights = losses.token_weights(batch.rows, loss.aggregation)
        tokens = losses.Tokens(
            batch.advantages, old, batch.rollout, batch.lags, batch.teacher, batch.reference, weights
        )
        return losses.policy(made.logprobs, made.entropy, tokens, loss, self.signal, strength)

    def _training(self, objective: losses.Objective) -> AbstractContextManager[None]:
        """Turn on an adapter's dropout for SFT and distillation.

        The policy loss compares the policy with the behavior policy, which had none: with dropout off their
        ratio is 1 before the first step. Old log-probs are without dropout, so with several steps
        distillation's importance ratio has its noise.
        """
        return self.adapter.dropout(objective != "policy") if self.adapter else nullcontext()

    def _put(
        self, version: int, tensors: Iterable[tuple[str, torch.Tensor]], layout: Layout | None = None
    ) -> WeightSet | None:
        """Put tensors into the object store, by rank 0. With a `layout` they are taken one by one."""
        if self.rank:
            for _ in tensors:  # all ranks may have to gather
                pass
            return None
        flat, layout, checksum = pack_tensors(tensors, layout)
        return WeightSet(version, layout, checksum, ray.put(flat))

    def _parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every full parameter under the model's name; each rank must exhaust it.

        Under ZeRO-3 a parameter is valid until the next is taken. An adapter is merged into float32 copies of
        the weights that it adds to.
        """
        adapter = self.adapter
        for name, weight in self.weights.items():
            pair = adapter.pairs.get(name, ()) if adapter else ()
            with self._whole((weight, *pair)):
                yield name, adapter.merged(name, weight) if adapter and pair else weight.detach()

    def _pairs(self) -> dict[str, LowRank]:
        """Return the adapter's full A and B on the CPU; every rank must call it."""
        pairs: dict[str, LowRank] = {}
        for name, (a, b) in self.adapter.pairs.items() if self.adapter else ():
            with self._whole((a, b)):
                pairs[name] = (a.detach().to("cpu", copy=True), b.detach().to("cpu", copy=True))
        return pairs
