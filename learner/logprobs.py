"""Log-probs of chosen tokens under a causal LM; logits are computed at their positions only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hindsight.learner.packing import PackedRows, hidden_states

CHUNK = 1024  # positions whose (chunk, vocabulary) float32 logits are in memory at once


class TokenScores(NamedTuple):
    """A model's output at P positions; a tuple, since DeepSpeed looks for tensors in tuples."""

    logprobs: torch.Tensor  # (P,) float32 of the targets
    entropy: torch.Tensor  # (P,) float32, nats
    candidates: torch.Tensor  # (P, k) float32 log-probs of the candidates, or int64 the most likely tokens


class UnsupportedModel(ValueError):
    """The model has more than a linear head between its trunk and its logits."""


class TokenHead(nn.Module):
    """The output layer: hidden states -> `TokenScores`, in chunks of positions.

    It is one module call for any number of chunks: under ZeRO-3 every call gathers the weight, and
    ranks must gather equally often.
    """

    def __init__(self, output: Any) -> None:
        """`output`: the model's own linear head."""
        super().__init__()
        self.weight = output.weight  # shared with the model's head and, if tied, its embedding
        self.bias = output.bias

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        candidates: torch.Tensor,
        likeliest: int,
    ) -> TokenScores:
        """(P, H) hidden states, (P,) targets, (P, k) candidates -> what `TokenLogprobs.forward` returns."""
        if len(targets) <= CHUNK:
            return TokenScores(*self.chunk(hidden, targets, temperature, candidates, likeliest))
        parts = [
            checkpoint(self.chunk, part, target, temperature, others, likeliest, use_reentrant=False)
            for part, target, others in zip(
                hidden.split(CHUNK), targets.split(CHUNK), candidates.split(CHUNK), strict=True
            )
        ]
        return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def chunk(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        candidates: torch.Tensor,
        likeliest: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`forward` for positions whose logits fit in memory together."""
        logits = nn.functional.linear(hidden, self.weight, self.bias).float() / temperature
        logprobs = logits.log_softmax(dim=-1)
        chosen = logprobs.gather(1, targets[:, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
        if likeliest:
            return chosen, entropy, logprobs.topk(min(likeliest, logprobs.shape[1]), dim=-1).indices
        return chosen, entropy, logprobs.gather(1, candidates)


class TokenLogprobs(nn.Module):
    """A causal LM as the learner needs it. Parameter names are the model's, after `PREFIX`."""

    PREFIX = "lm."

    def __init__(self, lm: Any) -> None:
        """`lm`: a transformers causal LM, after `packing.prepare`.

        Raises:
            UnsupportedModel: its logits are scaled or capped after the head.
        """
        super().__init__()
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(lm.config, name, None) not in (None, 1, 1.0):
                raise UnsupportedModel(
                    f"{type(lm).__name__} sets {name}; choose a model with a plain linear head"
                )
        self.lm = lm
        self.head = TokenHead(lm.get_output_embeddings())

    def forward(
        self,
        rows: PackedRows,
        places: torch.Tensor,
        targets: torch.Tensor,
        temperature: float = 1.0,
        candidates: torch.Tensor | None = None,
        likeliest: int = 0,
    ) -> TokenScores:
        """Log-probs and entropy at P positions.

        Args:
            rows: of N tokens.
            places: (P,) where the hidden state that predicts each target lies.
            targets: (P,) token ids.
            temperature: divides the logits, as the sampler did.
            candidates: (P, k) other tokens whose log-probs are wanted at the same positions.
            likeliest: if not 0, return the k most likely tokens instead.
        """
        if candidates is None:
            candidates = targets[:, None][:, :0]
        hidden = hidden_states(self.lm.base_model, rows)[places]
        made: TokenScores = self.head(hidden, targets, temperature, candidates, likeliest)
        return made
