"""Every metric that a run writes: its unit, whether more is better, and what it means.

`python -m hindsight.cluster.report.definitions` prints docs/metrics.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NOT_METRICS = ("step", "kind", "time", "stage", "panels")  # columns of metrics.jsonl that say which row it is

Better = Literal["more", "less", "neither"]
MORE: Better = "more"
LESS: Better = "less"
NEITHER: Better = "neither"


@dataclass(frozen=True)
class Definition:
    """What a metric means."""

    unit: str
    better: Better
    about: str  # one sentence


define = Definition

# Of every update, by policy, critic or warm start.
UPDATE = {
    "loss": define("", NEITHER, "Value of the loss that was minimized."),
    "grad_norm": define("", NEITHER, "Norm of the gradient before clipping, mean of the optimizer steps."),
    "lr": define("", NEITHER, "Learning rate."),
    "tokens": define("tokens", NEITHER, "Sampled tokens that the loss was computed on."),
    "tokens_read": define(
        "tokens", NEITHER, "Tokens of the samples; what several begin with counts in each."
    ),
    "samples": define("samples", NEITHER, "Token sequences in the update."),
    "micro_batches": define("", NEITHER, "Forward and backward passes of each rank."),
    "seconds": define("s", LESS, "Duration of the update, as the driver sees it."),
}
STRENGTH = define(
    "", NEITHER, "Strength λ of a teacher that weighs advantages; 0 where none does, as in distillation."
)
ENTROPY = define("nats", NEITHER, "Entropy of the next-token distribution, mean of the trained tokens.")

ROLLOUT = {
    "success": define("share", MORE, "Training episodes that succeeded."),
    "reward": define("", MORE, "Environment's reward of an episode, mean."),
    "episodes": define("episodes", NEITHER, "Episodes that the step trained on."),
    "turns_per_episode": define("turns", NEITHER, "Length of an episode, mean."),
    "tokens_per_turn": define("tokens", NEITHER, "Sampled tokens of a turn, mean."),
    "malformed": define("share", LESS, "Turns whose response holds no readable action."),
    "inadmissible": define("share", LESS, "Turns whose action the environment refused."),
    "mixed_groups": define(
        "share", MORE, "Groups with a success and a failure: group advantages learn from these."
    ),
    "solved_groups": define("share", MORE, "Groups with a success: pass@k, with k episodes in a group."),
    "distinct": define("share", MORE, "Episodes of a group whose actions differ from the others: diversity."),
    "tokens_per_second": define("tokens/s", MORE, "Sampled tokens over the time of the rollouts."),
    "episodes_per_second": define("episodes/s", MORE, "Episodes over the time of the rollouts."),
    "turns_per_second": define("turns/s", MORE, "Turns over the time of the rollouts."),
    "staleness": define("versions", LESS, "Weight versions between sampling and update, largest of a token."),
    "staleness_mean": define(
        "versions", LESS, "Weight versions between sampling and update, mean of tokens."
    ),
    "turns_total": define("turns", NEITHER, "Turns of all training episodes so far, lost ones included."),
}
EVAL = {
    "success": define("share", MORE, "Evaluation episodes that succeeded, after the last trial."),
    "low": define("share", NEITHER, "Lower bound of the 95 % interval of `eval/success`."),
    "high": define("share", NEITHER, "Upper bound of the 95 % interval of `eval/success`."),
    "episodes": define("episodes", NEITHER, "Evaluation episodes that finished."),
    "missing": define("episodes", LESS, "Evaluation episodes that failures kept from finishing: in no rate."),
    "turns": define("turns", NEITHER, "Length of an evaluation trial, mean."),
    "seconds": define("s", LESS, "Duration of the evaluation."),
    "tokens_read": define("tokens", NEITHER, "Tokens of the prompts of all turns and lessons."),
    "tokens_written": define("tokens", NEITHER, "Tokens sampled in all turns and lessons."),
    "score": define("", MORE, "Environment's reward of an evaluated task, mean over tasks: WebShop's score."),
    "tokens_per_play": define("tokens", LESS, "Tokens sampled in a play of a task, mean over tasks."),
    "avg_at_{k}": define("share", MORE, "Avg@k: the first k plays of a task that succeeded."),
    "best_at_{k}": define("share", MORE, "Best@k: tasks of whose first k plays one succeeded."),
    "pass_at_{k}": define("share", MORE, "Unbiased pass@k: chance that one of k plays of a task succeeds."),
    "pass_hat_{k}": define("share", MORE, "Unbiased pass^k: chance that all of k plays of a task succeed."),
    "low_{figure}": define("", NEITHER, "Lower bound of the 95 % bootstrap interval over tasks."),
    "high_{figure}": define("", NEITHER, "Upper bound of the 95 % bootstrap interval over tasks."),
    "success_trial_{n}": define("share", MORE, "Evaluation episodes that succeeded within n trials."),
    "low_trial_{n}": define("share", NEITHER, "Lower bound of the 95 % interval of that rate."),
    "high_trial_{n}": define("share", NEITHER, "Upper bound of the 95 % interval of that rate."),
}
LEARNER = {
    **UPDATE,
    "samples": define("samples", NEITHER, "Token sequences of all losses; 0: the step had nothing to learn."),
    "strength": STRENGTH,
    "entropy": ENTROPY,
    "clip_fraction": define("share", LESS, "Tokens whose gradient PPO's clip stopped."),
    "mismatch_kl": define(
        "nats", LESS, "KL divergence of the engines' policy from the learner's, per token."
    ),
    "mismatch_max": define("nats", LESS, "Largest gap between a token's log-probs by engine and learner."),
    "ess": define("share", MORE, "Effective sample size of the importance weights, uncapped."),
    "kl": define("nats", NEITHER, "KL divergence from the reference policy, per token."),
    "teacher_tokens": define("tokens", NEITHER, "Tokens of the policy loss that the teacher scored."),
    "teacher_gap": define(
        "nats", NEITHER, "Teacher's log-prob minus the student's, mean: what hindsight changes."
    ),
    "weight_mean": define(
        "", NEITHER, "Clipped weight of the tokens that the teacher scored, before λ, mean."
    ),
    "weight_clip_fraction": define("share", LESS, "Scored tokens whose factor `signal.clip` bounded."),
    "signal_loss": define("nats", LESS, "Loss of distillation, per token."),
    "signal_gap": define(
        "nats", NEITHER, "Teacher's log-prob minus the student's on distilled tokens, mean."
    ),
    "signal_tokens": define("tokens", NEITHER, "Tokens that distillation learned from."),
    "token_share_lag_{n}": define("share", NEITHER, "Tokens sampled by weights n versions old."),
    "importance_lag_{n}": define(
        "", NEITHER, "Importance weight of these tokens, capped, mean; 1 is on-policy."
    ),
    "truncated_lag_{n}": define(
        "share", LESS, "These tokens' importance weights that `loss.tis_cap` capped."
    ),
}
CRITIC = {
    **UPDATE,
    "clip_fraction": define("share", LESS, "Tokens whose value loss was clipped."),
    "value_mean": define("", NEITHER, "Critic's value, mean over tokens."),
    "return_mean": define("", MORE, "Return that the value estimates, mean over tokens."),
    "explained_variance": define(
        "",
        MORE,
        "Share of the returns' variance that the values explain; below 0, a constant would be better.",
    ),
}
FEEDBACK = {
    "texts": define("hints", NEITHER, "Turns that got a hint."),
    "asked": define("questions", NEITHER, "Questions to the judge."),
    "unreadable": define(
        "", LESS, "Answers of the judge and entries of them that could not be read, and turns left out."
    ),
    "tokens_read": define("tokens", NEITHER, "Prompt tokens of the judge, as it reports them."),
    "tokens_written": define("tokens", NEITHER, "Tokens that the judge generated, as it reports them."),
    "seconds_busy": define("s", LESS, "Time that groups waited for the judge, summed over groups."),
}
TEACHER = {
    "spans": define("spans", NEITHER, "Actions or responses that the teacher scored."),
    "span_tokens": define("tokens", NEITHER, "Tokens that the teacher scored."),
    "tokens": define("tokens", NEITHER, "Tokens that the teacher read; a shared prefix counts once."),
    "seconds_busy": define("s", LESS, "Time from request to answer, summed over teachers and groups."),
}
TIME = {
    "step": define("s", LESS, "Duration of the step, evaluations and checkpoints left out."),
    "rollout": define("s", LESS, "Wait for the rollouts."),
    "feedback_and_teacher": define("s", LESS, "Wait for hints and teacher that the rollouts did not hide."),
    "critic": define("s", LESS, "Wait for the critic's values."),
    "learner": define("s", LESS, "Wait for the updates."),
    "weight_sync": define("s", LESS, "Wait for the weight sync."),
}
WEIGHT_SYNC = {
    "logprob_gap": define(
        "nats", LESS, "Largest gap between engine and learner on the canary prompt, after a sync."
    ),
}
FAILURES = {
    "total": define("failures", LESS, "Failures so far; `failures/KIND` splits them."),
    "env_died": define("failures", LESS, "An environment's process ended."),
    "env_timeout": define("failures", LESS, "A step or reset of an environment took too long."),
    "env_error": define("failures", LESS, "An environment raised an error."),
    "prompt": define("failures", LESS, "The first prompt left no room for a response."),
    "engine": define("failures", LESS, "An engine failed."),
    "timeout": define("failures", LESS, "An episode took too long."),
    "lost": define("failures", LESS, "An actor's answer was lost with its node."),
    "teacher": define("failures", LESS, "Teacher or reference policy did not score a group."),
    "judge": define("failures", LESS, "The judge did not answer."),
    "demonstration": define("failures", LESS, "A demonstration did not finish."),
    "retried": define("episodes", LESS, "Failed attempts of this step's episodes that a retry replaced."),
    "groups_lost": define("groups", LESS, "Groups of this step that failures kept from training."),
    "tasks_set_aside": define(
        "tasks",
        LESS,
        "Training tasks excluded because they fail repeatedly or their first prompt is too long.",
    ),
}
RESTARTS = {
    "{role}": define("processes", LESS, "Processes of this role that were lost and replaced, so far."),
    "{role}_seconds": define("s", LESS, "Time until the role was complete again, summed."),
}
NOW = {
    "in_flight": define("episodes", NEITHER, "Training episodes in flight."),
    "finished": define("episodes", NEITHER, "Training episodes that ended since the last step."),
    "decoding_{n}": define("requests", NEITHER, "Requests in the batch of engine n."),
    "waiting_{n}": define("requests", LESS, "Requests that wait for a place in the batch of engine n."),
    "kv_cache_{n}": define("share", NEITHER, "Blocks of the KV cache of engine n that are in use."),
    "prefix_hits_{n}": define("share", MORE, "Tokens of prompts that engine n found in its prefix cache."),
    "prefilled_{n}": define(
        "tokens/s", MORE, "Tokens of prompts, cached ones included, of the responses that engine n ended."
    ),
    "sampled_{n}": define("tokens/s", MORE, "Sampled tokens of the responses that engine n ended."),
}
SFT = {**UPDATE, "strength": STRENGTH, "entropy": ENTROPY}
TOPICS: Mapping[str, tuple[str, Mapping[str, Definition]]] = {
    "eval": ("Evaluations", EVAL),
    "rollout": ("Rollouts", ROLLOUT),
    "learner": ("Updates of the policy", LEARNER),
    "critic": ("Updates of the critic, if the method has one", CRITIC),
    "feedback": ("Hints", FEEDBACK),
    "teacher": ("Teacher", TEACHER),
    "weight_sync": ("Weight sync", WEIGHT_SYNC),
    "time": ("Where a step's time goes", TIME),
    "failures": ("Failures", FAILURES),
    "restarts": ("Processes that were replaced", RESTARTS),
    "sft": ("Warm start", SFT),
    "now": ("The moment", NOW),
}
DEFINITIONS = {
    f"{topic}/{name}": definition for topic, (_, own) in TOPICS.items() for name, definition in own.items()
}
_PATTERNS = {
    re.compile(re.sub(r"\\{\w+\\}", r"\\w+?", re.escape(name))): definition
    for name, definition in sorted(DEFINITIONS.items(), key=lambda item: -len(item[0]))  # the closest first
}


def full_name(kind: str, key: str) -> str:
    """A metric's name with its topic: rows of the kind "sft" have keys without one."""
    return key if "/" in key else f"{kind}/{key}"


def gauge(name: str) -> str:
    """The name of a metric's gauge; Ray puts `ray_` before it."""
    return "hindsight_" + re.sub(r"\W", "_", name, flags=re.ASCII)


def find_definition(name: str) -> Definition | None:
    """The definition of a metric by its full name; None for one of an own tracker, signal or environment."""
    if panel := re.fullmatch(r"eval/.+/(\w+)", name):
        name = f"eval/{panel[1]}"
    exact = DEFINITIONS.get(name)
    return exact or next((one for pattern, one in _PATTERNS.items() if pattern.fullmatch(name)), None)


def undefined(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Full names of the metrics in rows of metrics.jsonl that have no definition."""
    names = {full_name(row["kind"], key) for row in rows for key in row if key not in NOT_METRICS}
    return {name for name in names if find_definition(name) is None}


OPENING = """# Metrics

Written by `python -m hindsight.cluster.report.definitions > docs/metrics.md` from
[`cluster/report/definitions.py`](../cluster/report/definitions.py).

## What to look at first

1. `eval/success` between `eval/low` and `eval/high`: the result. Where the intervals of two runs overlap,
   `hindsight compare` can still tell them apart, as it pairs them by task.
   Figures of several plays of a task (`eval/avg_at_4`, `eval/pass_hat_4`, …) are there if
   `evaluate.episodes` is a multiple of the panel's tasks.
2. `rollout/success`: the same of training episodes, at the sampling temperature. It is there every step,
   and noisy.
3. `rollout/malformed`, `rollout/inadmissible`: near 1 the model does not know the format, and learns
   nothing else. Raise `sft.demos`.
4. `rollout/mixed_groups`: at 0 the episodes of each group end alike, so group advantages have little to
   compare. Choose easier or harder tasks, or raise `rollout.group_size`.
5. `learner/teacher_gap`: at 0 hints change nothing. See `feedback/texts` and `feedback/unreadable`.
6. `learner/weight_clip_fraction`: near 1 `signal.clip` decides how strong the teacher is, not the teacher.
7. `learner/mismatch_kl`: with `rollout/staleness` at 0 only rounding is left: below 1e-4 in float32, more in
   bfloat16. A rise during a run is a defect.
8. `learner/ess`: the smaller, the further have the weights moved since sampling. Lower
   `rollout.max_staleness`.
9. `learner/entropy`: near 0 the policy no longer explores. `learner/grad_norm`: where it jumps, lower
   `learner.lr`.
10. `time/*`: the largest part of `time/step` is what to speed up ([performance.md](performance.md)).
    `failures/*` and `restarts/*` should stay near 0 ([reliability.md](reliability.md)).

## Where they are

`metrics.jsonl` in the run's folder has a row for each training step (`kind` "train"), evaluation ("eval")
and update of the warm start ("sft", without `sft/` in its keys). A figure that is not finite is `null`; one
that does not apply is absent. `stage` tells evaluations apart, and `panels` has the name and digest of each
panel of tasks. Keys without a panel, such as `eval/success`, are of the first of `evaluate.panels`; those of
another one have its name: `eval/taubench/airline/success`. TensorBoard and hosted trackers use the
names below; the evaluation before the warm start has curves of its own, such as `eval/success before warm
start`. Ray's metrics are called `ray_hindsight_rollout_success` and so on
([cluster.md](cluster.md#charts)). `now/*` are of the moment, every 5 s, evaluations included: on Ray's
endpoint, in `status.json` and in `hindsight top` only. A share is between 0 and 1. Figures are of one step
or one evaluation unless they say "so far".
"""


def page() -> str:
    """docs/metrics.md."""
    parts = [OPENING]
    for topic, (title, own) in TOPICS.items():
        lines = [f"## {title}", "", "| metric | unit | better | what |", "|---|---|---|---|"]
        for name, one in own.items():
            better = "" if one.better == NEITHER else one.better
            lines.append(f"| `{topic}/{name}` | {one.unit} | {better} | {one.about} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
