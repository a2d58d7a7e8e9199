"""The teacher: an actor with a causal LM that scores chosen spans and computes each shared prefix once.

own = {"env_vars": teacher_env(config)}
teacher = ray.remote(TeacherScorer).options(runtime_env=own, ...).remote(path, config, temperature, share)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hindsight.configs.environ import Named, actor_environment
from hindsight.configs.schema import Config
from hindsight.rollout.adapter import Adapter, peft_names
from hindsight.rollout.device import find_device
from hindsight.rollout.segment import fetch
from hindsight.rollout.weights import Layout, WeightSet, checksum, pack_tensors, unpack_tensors
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.cpu_attention import use_products
from hindsight.teacher.plan import Tails, lay_out, plan_batches, plan_forwards

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

HEAD_ROWS = 1024  # positions per chunk of float32 logits over the vocabulary, to limit memory


class ScorerError(ValueError):
    """The model is not supported as a teacher."""


class Outdated(RuntimeError):
    """The scorer's process was replaced and does not have the weights of the last sync yet."""


class WeightsError(RuntimeError):
    """Received weights are corrupt or do not match this model."""


def teacher_env(config: Config) -> dict[str, str]:
    """Return the environment variables for the teacher's process."""
    return actor_environment(config.cluster.threads)


@dataclass(frozen=True)
class Scored:
    """The teacher's scores for one request."""

    logprobs: np.ndarray  # (n,) float32, of the span's tokens
    candidates: np.ndarray  # (n, k) float32, of the request's candidates; k may be 0


class SpanScorer:
    """Scores spans under a causal LM and computes logits for those spans only."""

    def __init__(self, model: PreTrainedModel, budget: int, temperature: float) -> None:
        """Put the model in eval mode and check that it is supported.

        Args:
            model: a transformers causal LM with full attention in every layer and a plain linear head.
            budget: maximum tokens of one forward pass.
            temperature: divides the logits.

        Raises:
            ScorerError: the model has a different kind of attention or head.
        """
        self.model = model.eval()
        self.budget = budget
        self.temperature = temperature
        self.computed = 0  # tokens that went through the model, including padding
        self._check()

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest]
    ) -> list[Scored]:
        """Return the scores of each request, in the order of `requests`.

        Args:
            sequences: per trajectory, the ids of its sequences, (L,) int32 each.

        Raises:
            BudgetError: a single request exceeds the budget.
        """
        from transformers import DynamicCache

        scores: dict[int, Scored] = {}
        for trees in plan_forwards(requests, self.budget):
            trunks = [sequences[tree.trajectory][tree.sequence][: tree.trunk] for tree in trees]
            kept = DynamicCache()  # the trunks' keys and values
            self._read(self._stack(trunks), kept)
            for batch in plan_batches(trees, requests):
                kept.crop(batch.seen - kept.get_seq_length())  # drop keys and values of the previous batch
                rows = [lay_out([requests[index] for index in part]) for part in batch.parts]
                for part, scored in zip(batch.parts, self._run(rows, kept), strict=True):
                    scores.update(zip(part, scored, strict=True))
        return [scores[index] for index in range(len(requests))]

    def _run(self, rows: Sequence[Tails], kept: Cache) -> Iterator[list[Scored]]:
        """Yield the scores of each row's requests."""
        branch, seen = self._stack([row.branch for row in rows]), self._stack([row.seen for row in rows])
        mask = run_mask(branch, seen, kept.get_seq_length())
        ids, positions = self._stack([row.ids for row in rows]), self._stack([row.positions for row in rows])
        hidden = self._read(ids, kept, position_ids=positions, attention_mask=mask[:, None])
        for row, states in zip(rows, hidden, strict=True):
            chosen = states[torch.from_numpy(row.predictors).to(states.device)]
            logprobs = self._logprobs(chosen, torch.from_numpy(row.wanted).to(states.device)).cpu().numpy()
            parts = np.split(logprobs, np.cumsum(row.sizes, dtype=int))[:-1]  # the last part is empty
            yield [Scored(part[:, 0], part[:, 1:]) for part in parts]

    def _read(self, ids: torch.Tensor, kept: Cache, **inputs: torch.Tensor) -> torch.Tensor:
        """Run (B, L) ids through the base model, extend the cache `kept` and return the (B, L, H) states."""
        self.computed += ids.numel()
        states: torch.Tensor = self.model.base_model(
            input_ids=ids, past_key_values=kept, use_cache=True, **inputs
        ).last_hidden_state
        return states

    def _logprobs(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return (W, n) float32 log-probs of (W, n) tokens, given (W, H) states."""
        head = self.model.get_output_embeddings()
        parts = []
        for states, chosen in zip(hidden.split(HEAD_ROWS), tokens.long().split(HEAD_ROWS), strict=True):
            logits = head(states).float() / self.temperature
            parts.append(logits.gather(1, chosen) - logits.logsumexp(dim=-1, keepdim=True))
        return torch.cat(parts)

    def _stack(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """Stack rows, padded on the right with 0, (B, L) int64."""
        padded = np.zeros((len(arrays), max(map(len, arrays))), dtype=np.int64)
        for row, values in zip(padded, arrays, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(padded).to(self.model.device)

    @torch.inference_mode()
    def _check(self) -> None:
        config = self.model.config
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
            raise ScorerError(
                f"{type(self.model).__name__} has layers without full attention, so contexts cannot share a "
                "prefix: set model.path to a model with full attention in every layer"
            )
        probe = torch.arange(4, device=self.model.device)[None]
        hidden = self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        logits = self.model(input_ids=probe, use_cache=False).logits
        if not torch.equal(self.model.get_output_embeddings()(hidden).to(logits.device), logits):
            raise ScorerError(
                f"{type(self.model).__name__} scales or caps its logits after the head: "
                "set model.path to a model with a plain linear head"
            )


def run_mask(branch: torch.Tensor, seen: torch.Tensor, trunk: int) -> torch.Tensor:
    """Return the attention mask of a batch.

    Args:
        branch, seen: (B, S), as in `Tails`, padded on the right with 0.
        trunk: number of trunk tokens.

    Returns:
        (B, S, trunk + S) bool, query by key. A query attends to the trunk before its cut, to earlier tokens
        of its tail and to itself. Padding attends to padding, because a query needs at least one key.
    """
    order = torch.arange(branch.shape[1], device=branch.device)
    in_trunk = torch.arange(trunk, device=branch.device) < seen[:, :, None]
    in_tail = (branch[:, :, None] == branch[:, None, :]) & (order[:, None] >= order)
    return torch.cat([in_trunk, in_tail], dim=2)


def load_strictly(targets: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy each tensor into the target of the same name.

    Raises:
        WeightsError: see `fitting_tensors`. Nothing has been copied then.
    """
    given = fitting_tensors(targets, tensors)
    with torch.no_grad():
        for name, tensor in given:
            targets[name].copy_(tensor)


def fitting_tensors(
    targets: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors after checking that each target has exactly one.

    Raises:
        WeightsError: a tensor is missing, unknown, duplicated or has the wrong shape.
    """
    given = list(tensors)
    arrived = sorted((name, tuple(tensor.shape)) for name, tensor in given)
    expected = sorted((name, tuple(target.shape)) for name, target in targets.items())
    if arrived != expected:
        odd = sorted(set(arrived) ^ set(expected))[:4] or "a name occurs twice"
        raise WeightsError(f"{len(arrived)} weights do not match {len(expected)} parameters: {odd}")
    return given


class TeacherScorer(Named):
    """Scores with a copy or moving average of the student's weights. Methods are called through Ray.

    If the student trains an adapter, the teacher has the base model and its own copy of the adapter.
    """

    def __init__(self, model: str, config: Config, temperature: float, share: float = 1.0) -> None:
        """Load the model.

        Args:
            model: folder of a causal LM.
            temperature: divides the logits.
            share: weight of the student in each refresh. Below 1, the teacher is a moving average in float32.

        Raises:
            ScorerError: see `SpanScorer`.
            AdapterError: the model cannot carry `learner.lora`.
        """
        from transformers import AutoModelForCausalLM

        self._device = find_device()
        parts = self._device == "cuda" and torch.cuda.device_count() > 1  # each GPU takes some layers
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, config.model.dtype),
            attn_implementation="sdpa",
            device_map="auto" if parts else None,
        )
        if self._device == "cpu" and loaded.dtype == torch.bfloat16 and loaded._supports_attention_backend:
            use_products(loaded)
        lora = config.learner.lora
        adapter = Adapter(loaded, lora, config.seed) if lora.rank else None
        if not parts:  # `loaded.to` moves in place too, but its decorators confuse the type checker
            torch.nn.Module.to(loaded, self._device)
        self._scorer = SpanScorer(loaded, config.teacher.batch_tokens, temperature)
        # The tensors that follow the student, by their names in a weight sync.
        self._held = peft_names(adapter.pairs) if adapter else dict(loaded.named_parameters())
        averages = share < 1 and not config.averages_adapter  # the learner averages an adapter
        # A moving average in bfloat16 would round small steps away.
        self._average = (
            {name: value.detach().float() for name, value in self._held.items()} if averages else None
        )
        self._share = share
        self._version = 0

    def ready(self) -> dict[str, int]:
        """Return the weight `version`, and `context`: the maximum tokens of a request (`ContextLimits`)."""
        positions = int(self._scorer.model.config.max_position_embeddings)
        return {"version": self._version, "context": min(positions, self._scorer.budget)}

    def load_weights(self, weights: WeightSet, whole: bool = True, since: int | None = None) -> None:
        """Move toward the student's weights by `share`, or copy them.

        Args:
            whole: copy the weights, regardless of `share`.
            since: version of the weights that the others move from as well.

        Raises:
            Outdated: this process has other weights.
            SegmentUnreachable: this machine has no copy of the weights.
            WeightsError: the buffer is corrupt or does not match this model.
        """
        if not whole:
            self._require(since)
        flat = fetch(weights)
        if (found := checksum(flat, weights.layout)) != weights.checksum:
            raise WeightsError(
                f"weights {weights.version}: sent checksum {weights.checksum}, arrived as {found}"
            )
        self._take(unpack_tensors(flat, weights.layout), 1.0 if whole else self._share)
        self._version = weights.version

    def snapshot(self, version: int) -> tuple[tuple[int, Layout, str], np.ndarray]:
        """Return version, layout and checksum of the weights, and all of them in one buffer (`pack_tensors`).

        Raises:
            Outdated: this process does not have the weights of that version.
        """
        self._require(version)
        flat, layout, checksum = pack_tensors((self._average or self._held).items())
        return (self._version, layout, checksum), flat

    def save(self, path: str, version: int | None = None) -> None:
        """Write the weights of that version to a safetensors file, which a resumed run needs.

        Raises:
            Outdated: this process has other weights.
        """
        from safetensors.torch import save_file

        self._require(version)
        held = self._average or self._held
        tensors = {name: value.detach().cpu() for name, value in held.items()}
        save_file(tensors, path, metadata={"version": str(self._version)})

    def load(self, path: str) -> int:
        """Load weights that `save` wrote; returns their version.

        Raises:
            WeightsError: the file does not match this model.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self._take(((name, file.get_tensor(name)) for name in list(file.keys())), 1.0)
            self._version = int(file.metadata()["version"])
        return self._version

    def _take(self, tensors: Iterable[tuple[str, torch.Tensor]], share: float) -> None:
        """Move toward these weights by `share`. Raises WeightsError before anything changes."""
        average = self._average
        if average is None:
            load_strictly(self._held, tensors)
            return
        given = fitting_tensors(self._held, tensors)
        with torch.no_grad():
            for name, tensor in given:
                self._held[name].copy_(average[name].lerp_(tensor.to(average[name]), share))

    def to_host(self) -> None:
        """Leave the GPU; only `score` needs it."""
        self._move("cpu")
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def to_device(self) -> None:
        """Return to the GPU."""
        self._move(self._device)

    def _move(self, device: str) -> None:
        torch.nn.Module.to(self._scorer.model, device)  # in place: `_held` has the same parameters
        if self._average is not None:
            self._average = {name: value.to(device) for name, value in self._average.items()}

    def score(
        self,
        sequences: Sequence[Sequence[np.ndarray]],
        requests: Sequence[ScoreRequest],
        version: int | None = None,
    ) -> list[Scored]:
        """Return the scores by the weights of that version; see `SpanScorer.score`.

        Raises:
            Outdated: this process has other weights.
        """
        self._require(version)
        return self._scorer.score(sequences, requests)

    def _require(self, version: int | None) -> None:
        if version not in (None, self._version):
            raise Outdated(f"the scorer has weights {self._version}, and {version} are asked for")
