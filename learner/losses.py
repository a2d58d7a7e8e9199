"""Losses over the sampled tokens of a micro-batch, as weighted sums: the caller divides by a denominator that
counts all micro-batches of all ranks, so the result does not depend on how rows are packed.

P = number of sampled tokens in the micro-batch; it may be 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from hindsight.configs.schema import Loss
from hindsight.learner.distill import Likelihoods
from hindsight.learner.samples import TrainingSample
from hindsight.learner.signals import TeacherSignal

RATIO_BOUND = 20.0  # bound of a log-ratio before exp
Objective = Literal["policy", "signal", "sft", "value"]  # the losses: the last is the critic's
PEAKS = ("mismatch_max",)  # statistics that are merged by their maximum; all others are sums


@dataclass(frozen=True)
class Tokens:
    """The inputs of the policy loss for each token; all (P,) float32, without gradient."""

    advantages: torch.Tensor
    old: torch.Tensor  # learner's log-probs before this batch's first optimizer step
    rollout: torch.Tensor  # engine's log-probs
    lags: torch.Tensor  # weight versions between the token's sampling and this update; NaN if not known
    teacher: torch.Tensor  # log-probs under the teacher's context; NaN if not scored
    reference: torch.Tensor  # log-probs of the reference policy; NaN if not computed
    weights: torch.Tensor  # weight of the token in its sequence's loss, by `token_weights`


def token_weights(rows: torch.Tensor, aggregation: str) -> torch.Tensor:
    """(P,) float32 weight of each token; with `denominator` they make the means of `loss.aggregation`.

    Args:
        rows: (P,) int64, the row of each token. A row is never split over micro-batches.
    """
    if aggregation == "sequence-mean":
        return 1.0 / torch.bincount(rows)[rows]
    return torch.ones_like(rows, dtype=torch.float32)


def denominator(samples: Sequence[TrainingSample], loss: Loss) -> float:
    """Return what the sum over all samples, of all ranks, is divided by.

    token-mean      Σ_i Σ_j l_ij / Σ_i n_i            every token counts alike (DAPO, arXiv 2503.14476)
    sequence-mean   Σ_i (Σ_j l_ij / n_i) / B          every sample counts alike (GRPO, arXiv 2402.03300)
    constant        Σ_i (Σ_j l_ij / constant) / B     no bias for short samples (Dr.GRPO, arXiv 2503.20783)

    over B samples of n_i tokens. A sample is a trajectory in the history preset, a turn in the window preset.
    """
    if loss.aggregation == "token-mean":
        return float(sum(len(sample.positions) for sample in samples))
    return len(samples) * (loss.constant if loss.aggregation == "constant" else 1.0)


def importance(old: torch.Tensor, rollout: torch.Tensor, cap: float) -> torch.Tensor:
    """(P,) min(π_learner / π_rollout, cap): corrects for stale weights and engine rounding; 0: off."""
    if cap == 0:
        return torch.ones_like(old)
    return torch.exp((old - rollout).clamp(-RATIO_BOUND, RATIO_BOUND)).clamp(max=cap)


def surrogate(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dual-clip PPO (arXiv 1912.09729) of each token, and where a clip stops its gradient; both (P,)."""
    ratio = torch.exp((logprobs - old).clamp(-RATIO_BOUND, RATIO_BOUND))
    free = -advantages * ratio
    bound = -advantages * ratio.clamp(1.0 - loss.clip_low, 1.0 + loss.clip_high)
    value, stopped = torch.maximum(free, bound), bound > free
    if loss.dual_clip > 0:
        most = -loss.dual_clip * advantages
        over = (advantages < 0) & (value > most)
        value, stopped = torch.where(over, most, value), stopped | over
    return value, stopped


def kl_divergence(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(P,) estimate of KL(π ‖ π_ref) on tokens sampled from π: k3 = r − 1 − log r with r = π_ref / π.

    It is unbiased and never negative (GRPO, arXiv 2402.03300, equation 4).
    """
    log_ratio = reference - logprobs
    return torch.exp(log_ratio.clamp(-RATIO_BOUND, RATIO_BOUND)) - 1.0 - log_ratio


def policy(
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    tokens: Tokens,
    loss: Loss,
    signal: TeacherSignal,
    strength: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted sum over tokens of the dual-clip loss, minus the entropy bonus, plus the KL penalty;
    and sums of its statistics, each token counted alike.

    Args:
        logprobs: (P,) current policy at the sampling temperature, with gradient.
        entropy: (P,) of the current policy, with gradient where `loss.entropy` > 0.
        signal: shapes the advantages. strength: its λ in this step.

    Raises:
        ValueError: `loss.kl` > 0 and a token has no reference log-prob.
    """
    gap = tokens.teacher - logprobs.detach()
    shaped = signal.shape(tokens.advantages, gap, strength)
    value, clipped = surrogate(logprobs, tokens.old, shaped, loss)
    total = (tokens.weights * importance(tokens.old, tokens.rollout, loss.tis_cap) * value).sum()
    if loss.entropy > 0:
        total = total - loss.entropy * (tokens.weights * entropy).sum()
    sums = {"entropy": entropy.sum(), "clipped": clipped.sum()}
    if loss.kl > 0:
        if torch.isnan(tokens.reference).any():
            raise ValueError(
                f"loss.kl = {loss.kl} needs the reference policy's log-prob of every sampled token: "
                "fill TrainingSample.reference_logprobs, or set loss.kl=0"
            )
        penalty = kl_divergence(logprobs, tokens.reference)
        total = total + loss.kl * (tokens.weights * penalty).sum()
        sums["kl"] = penalty.sum()
    sums["loss"] = total
    return total, {
        **{name: float(value.detach()) for name, value in sums.items()},
        **mismatch_sums(tokens.old, tokens.rollout),
        **lag_sums(tokens, loss.tis_cap),
        **teacher_sums(tokens.advantages, gap, signal),
    }


def signal_loss(
    student: Likelihoods, teacher: Likelihoods, old: torch.Tensor, signal: TeacherSignal
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum over tokens of the teacher signal's own loss, and the sums of its statistics.

    Args:
        student: with gradient. teacher: without.
        old: (P,) log-probs before this update's first optimizer step.
    """
    total = signal.loss(student, teacher, old).sum()
    gap = teacher.tokens - student.tokens.detach()
    return total, {"loss": float(total.detach()), "gap": float(gap.sum())}


def sft_loss(
    logprobs: torch.Tensor, entropy: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted sum over tokens of the negative log-likelihood, and the sums of its statistics."""
    total = -(weights * logprobs).sum()
    return total, {"loss": float(total.detach()), "entropy": float((weights * entropy.detach()).sum())}


def value(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum over tokens of ½·max((V − R)², (V_old + clip(V − V_old, −c, c) − R)²), PPO's loss of its critic: a
    value that has moved c toward its return moves no further; and sums of its statistics.

    Args:
        values: (P,) V with gradient. old: (P,) V_old before the update. returns: (P,) R.
        clip: c; 0 leaves the second term out.
    """
    free = (values - returns).square()
    # Clamp V rather than V − V_old, whose rounding would count values that hardly moved as clipped.
    bound = (values.clamp(old - clip, old + clip) - returns).square() if clip > 0 else free
    total = 0.5 * torch.maximum(free, bound).sum()
    return total, {"loss": float(total.detach()), "clipped": float((bound > free).sum())}


def mismatch_sums(old: torch.Tensor, rollout: torch.Tensor) -> dict[str, float]:
    """Sums for the mismatch of engine and learner.

    KL(rollout ‖ learner) by the k3 estimator r − 1 − log r with r = π_learner / π_rollout, and the moments
    of r for the effective sample size.
    """
    log_ratio = old - rollout
    ratio = torch.exp(log_ratio.clamp(-RATIO_BOUND, RATIO_BOUND))
    return {
        "mismatch": float((ratio - 1.0 - log_ratio).sum()),
        "mismatch_max": float(log_ratio.abs().max()) if len(log_ratio) else 0.0,
        "ratio": float(ratio.sum()),
        "ratio_squared": float((ratio * ratio).sum()),
    }


def lag_sums(tokens: Tokens, cap: float) -> dict[str, float]:
    """For each lag, its tokens and the sums of their importance weights and of what the cap has cut off."""
    weights = importance(tokens.old, tokens.rollout, cap)
    sums: dict[str, float] = {}
    for lag in tokens.lags[~torch.isnan(tokens.lags)].unique().tolist():
        own = weights[tokens.lags == lag]
        sums |= {
            f"tokens_lag_{lag:.0f}": float(len(own)),
            f"importance_lag_{lag:.0f}": float(own.sum()),
            f"truncated_lag_{lag:.0f}": float((own == cap).sum()),
        }
    return sums


def teacher_sums(advantages: torch.Tensor, gap: torch.Tensor, signal: TeacherSignal) -> dict[str, float]:
    """Sums over the tokens that the teacher scored."""
    scored = ~torch.isnan(gap)
    weights, raw = signal.weights(advantages[scored], gap[scored])
    return {
        "scored": float(scored.sum()),
        "gap": float(gap[scored].sum()),
        "weight": float(weights.sum()),
        "weight_clipped": float((weights != raw).sum()),
    }


def merge(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Merge the sums of micro-batches, updates and ranks."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            held = merged.get(name, 0.0)
            merged[name] = max(held, value) if name in PEAKS else held + value
    return merged


def report(
    objective: Objective, sums: dict[str, float], tokens: float, denominator: float
) -> dict[str, float]:
    """Return the statistics of one loss of an update from its merged sums over `tokens` tokens (or their
    weights); the loss is over `denominator`.

    Importance weights are reported by the lag of the weights that sampled the tokens: their mean, and the
    share that was capped. Teacher statistics appear only if the teacher scored a token; `ess` is the
    effective sample size of the uncapped importance weights as a share of the tokens.
    """
    if objective == "value":
        return {"loss": sums["loss"] / denominator, "clip_fraction": sums["clipped"] / tokens}
    if objective == "signal":
        figures = {f"signal_{name}": sums[name] / tokens for name in ("loss", "gap")}
        return figures | {"signal_tokens": tokens}
    stats = {"loss": sums["loss"] / denominator, "entropy": sums["entropy"] / tokens}
    if "mismatch" in sums:
        stats |= {
            "clip_fraction": sums["clipped"] / tokens,
            "mismatch_kl": sums["mismatch"] / tokens,
            "mismatch_max": sums["mismatch_max"],
            "ess": sums["ratio"] ** 2 / (tokens * sums["ratio_squared"]),
            "teacher_tokens": sums["scored"],
        }
        for name in sums:
            if name.startswith("tokens_lag_"):
                lag = name.removeprefix("tokens_")
                stats[f"token_share_{lag}"] = sums[name] / tokens
                stats[f"importance_{lag}"] = sums[f"importance_{lag}"] / sums[name]
                stats[f"truncated_{lag}"] = sums[f"truncated_{lag}"] / sums[name]
        if "kl" in sums:
            stats["kl"] = sums["kl"] / tokens
        if sums["scored"]:
            stats |= {
                "teacher_gap": sums["gap"] / sums["scored"],
                "weight_mean": sums["weight"] / sums["scored"],
                "weight_clip_fraction": sums["weight_clipped"] / sums["scored"],
            }
    return stats
