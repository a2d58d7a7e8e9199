"""The teacher: a causal LM that scores chosen spans, each prefix computed once, and the actor that holds it.

own = {"env_vars": teacher_env(config)}
teacher = ray.remote(TeacherScorer).options(runtime_env=own, ...).remote(path, config, temperature, share)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hindsight.configs.environ import actor_environment
from hindsight.configs.schema import Config
from hindsight.rollout.adapter import Adapter, named
from hindsight.rollout.device import find_device
from hindsight.rollout.weights import WeightSet, digest, unpack
from hindsight.teacher.contexts import ScoreRequest
from hindsight.teacher.plan import Tails, lay_out, plan_forwards, plan_runs

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

HEAD_ROWS = 1024  # positions whose float32 logits over the vocabulary exist at once


class ScorerError(ValueError):
    """The model cannot be a teacher."""


class WeightsError(RuntimeError):
    """Weights that arrived are not the ones that were sent, or not this model's."""


def teacher_env(config: Config) -> dict[str, str]:
    """Environment variables the teacher's process must start with."""
    return actor_environment(config.cluster.threads)


@dataclass(frozen=True)
class Scored:
    """What the teacher gives to one request."""

    logprobs: np.ndarray  # (n,) float32 of the span's tokens
    candidates: np.ndarray  # (n, k) float32 of the request's candidates; k may be 0


class SpanScorer:
    """Log-probs of spans under a causal LM, without logits anywhere else."""

    def __init__(self, model: PreTrainedModel, budget: int, temperature: float) -> None:
        """
        Args:
            model: a transformers causal LM with full attention in every layer and a plain linear head.
            budget: most tokens of one forward.
            temperature: divides the logits.

        Raises:
            ScorerError: the model has another kind of attention or head.
        """
        self.model = model.eval()
        self.budget = budget
        self.temperature = temperature
        self.computed = 0  # tokens that went through the model, padding included
        self._check()

    @torch.inference_mode()
    def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest]
    ) -> list[Scored]:
        """
        Args:
            sequences: per trajectory, the ids of its sequences, (L,) int32 each.

        Raises:
            BudgetError: a request alone is over the budget.
        """
        from transformers import DynamicCache

        scores: dict[int, Scored] = {}
        for trees in plan_forwards(requests, self.budget):
            trunks = [sequences[tree.trajectory][tree.sequence][: tree.trunk] for tree in trees]
            kept = DynamicCache()  # the trunks' keys and values
            self._read(self._stack(trunks), kept)
            for run in plan_runs(trees, requests):
                kept.crop(run.seen - kept.get_seq_length())  # from what the run before left
                rows = [lay_out([requests[index] for index in part]) for part in run.parts]
                for part, scored in zip(run.parts, self._run(rows, kept), strict=True):
                    scores.update(zip(part, scored, strict=True))
        return [scores[index] for index in range(len(requests))]

    def _run(self, rows: Sequence[Tails], kept: Cache) -> Iterator[list[Scored]]:
        """Per row, what is wanted of each request."""
        branch, seen = self._stack([row.branch for row in rows]), self._stack([row.seen for row in rows])
        mask = run_mask(branch, seen, kept.get_seq_length())
        ids, positions = self._stack([row.ids for row in rows]), self._stack([row.positions for row in rows])
        hidden = self._read(ids, kept, position_ids=positions, attention_mask=mask[:, None])
        for row, states in zip(rows, hidden, strict=True):
            chosen = states[torch.from_numpy(row.predictors).to(states.device)]
            logprobs = self._logprobs(chosen, torch.from_numpy(row.wanted).to(states.device)).cpu().numpy()
            parts = np.split(logprobs, np.cumsum(row.sizes, dtype=int))[:-1]  # the last one is empty
            yield [Scored(part[:, 0], part[:, 1:]) for part in parts]

    def _read(self, ids: torch.Tensor, kept: Cache, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, L) ids behind what is kept -> (B, L, H) states; keys and values are kept too."""
        self.computed += ids.numel()
        states: torch.Tensor = self.model.base_model(
            input_ids=ids, past_key_values=kept, use_cache=True, **inputs
        ).last_hidden_state
        return states

    def _logprobs(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(W, H) states and (W, n) tokens -> (W, n) float32 log-probs."""
        head = self.model.get_output_embeddings()
        parts = []
        for states, chosen in zip(hidden.split(HEAD_ROWS), tokens.long().split(HEAD_ROWS), strict=True):
            logits = head(states).float() / self.temperature
            parts.append(logits.gather(1, chosen) - logits.logsumexp(dim=-1, keepdim=True))
        return torch.cat(parts)

    def _stack(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """Rows padded on the right with 0, (B, L) int64."""
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
                "prefix in one forward: choose a model with full attention in every layer for model.path"
            )
        probe = torch.arange(4, device=self.model.device)[None]
        hidden = self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        logits = self.model(input_ids=probe, use_cache=False).logits
        if not torch.equal(self.model.get_output_embeddings()(hidden), logits):
            raise ScorerError(
                f"{type(self.model).__name__} scales or caps its logits behind the head: "
                "choose a model with a plain linear head for model.path"
            )


def run_mask(branch: torch.Tensor, seen: torch.Tensor, trunk: int) -> torch.Tensor:
    """Who sees whom in a run, both arguments (B, S) as in `Tails`, padded behind with 0.

    Returns:
        (B, S, trunk + S) bool, query by key: a trunk token before the query's cut, the query itself or an
        earlier token of its own tail. Padding sees padding, since it has to see something.
    """
    order = torch.arange(branch.shape[1], device=branch.device)
    in_trunk = torch.arange(trunk, device=branch.device) < seen[:, :, None]
    in_tail = (branch[:, :, None] == branch[:, None, :]) & (order[:, None] >= order)
    return torch.cat([in_trunk, in_tail], dim=2)


def load_strictly(targets: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy tensors into those of the same name: each exactly once, or none at all.

    Raises:
        WeightsError: see `fitting`.
    """
    given = fitting(targets, tensors)
    with torch.no_grad():
        for name, tensor in given:
            targets[name].copy_(tensor)


def fitting(
    targets: Mapping[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]
) -> list[tuple[str, torch.Tensor]]:
    """The tensors, one for each target.

    Raises:
        WeightsError: one is missing, unknown, given twice or of another shape.
    """
    given = list(tensors)
    arrived = sorted((name, tuple(tensor.shape)) for name, tensor in given)
    expected = sorted((name, tuple(target.shape)) for name, target in targets.items())
    if arrived != expected:
        odd = sorted(set(arrived) ^ set(expected))[:4] or "one is given twice"
        raise WeightsError(f"{len(arrived)} weights do not fit {len(expected)} parameters: {odd}")
    return given


class TeacherScorer:
    """Holds a copy of the student's weights and scores with it. Every method is for Ray to call.

    Of a student that trains an adapter, it holds the model and such an adapter beside it.
    """

    def __init__(self, model: str, config: Config, temperature: float, share: float = 1.0) -> None:
        """
        Args:
            model: a folder of a causal LM.
            temperature: divides the logits.
            share: of the way to the student that a refresh moves it; below 1 it keeps an average in float32.

        Raises:
            ScorerError: see `SpanScorer`.
            AdapterError: the model cannot carry `learner.lora`.
        """
        from transformers import AutoModelForCausalLM

        device = find_device()
        loaded = AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, config.model.dtype), attn_implementation="sdpa"
        )
        lora = config.learner.lora
        adapter = Adapter(loaded, lora, config.seed) if lora.rank else None
        # Moved in place: `to` of a PreTrainedModel is decorated beyond what a type checker can follow.
        torch.nn.Module.to(loaded, device)
        self._scorer = SpanScorer(loaded, config.teacher.batch_tokens, temperature)
        # What follows the student, by the names under which it travels.
        self._held = named(adapter.pairs) if adapter else dict(loaded.named_parameters())
        averages = share < 1 and not config.averages_adapter  # of an adapter: the learner does
        # A moving average in bfloat16 would round small steps away.
        self._average = (
            {name: value.detach().float() for name, value in self._held.items()} if averages else None
        )
        self._share = share
        self._version = 0

    def ready(self) -> dict[str, int]:
        """Version of the weights, and `context`: most tokens of one request (for `ContextLimits`)."""
        positions = int(self._scorer.model.config.max_position_embeddings)
        return {"version": self._version, "context": min(positions, self._scorer.budget)}

    def load_weights(self, weights: WeightSet, whole: bool = True) -> None:
        """Take over the student: as a hard copy, or its share of it.

        Args:
            whole: a hard copy, whatever the share.

        Raises:
            WeightsError: the buffer is not the one that was sent, or not this model's.
        """
        import ray

        flat = ray.get(weights.data)
        if (found := digest(flat)) != weights.digest:
            raise WeightsError(f"weights {weights.version} were sent as {weights.digest}, arrived as {found}")
        self._take(unpack(flat, weights.layout), 1.0 if whole else self._share)
        self._version = weights.version

    def save(self, path: str) -> None:
        """Write the weights as a safetensors file: a resumed run needs the teacher of the last refresh."""
        from safetensors.torch import save_file

        held = self._average or self._held
        tensors = {name: value.detach().cpu() for name, value in held.items()}
        save_file(tensors, path, metadata={"version": str(self._version)})

    def load(self, path: str) -> None:
        """Take over what `save` wrote.

        Raises:
            WeightsError: the file is not of this model.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self._take(((name, file.get_tensor(name)) for name in list(file.keys())), 1.0)
            self._version = int(file.metadata()["version"])

    def _take(self, tensors: Iterable[tuple[str, torch.Tensor]], share: float) -> None:
        """Move by `share` of the way to these weights. Raises WeightsError; nothing has moved then."""
        average = self._average
        if average is None:
            load_strictly(self._held, tensors)
            return
        given = fitting(self._held, tensors)
        with torch.no_grad():
            for name, tensor in given:
                self._held[name].copy_(average[name].lerp_(tensor.to(average[name]), share))

    def score(
        self, sequences: Sequence[Sequence[np.ndarray]], requests: Sequence[ScoreRequest]
    ) -> list[Scored]:
        """`SpanScorer.score`."""
        return self._scorer.score(sequences, requests)
