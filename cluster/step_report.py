"""What the terminal says of a training step: how its episodes went, what it trained, one of them in short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hindsight.cluster.evaluate import Evaluation
from hindsight.cluster.report.run_folder import PHASES
from hindsight.cluster.report.text import one_line
from hindsight.configs.schema import Config
from hindsight.learner.samples import SampleGroup

EPISODE_EVERY = 10  # steps between two printed episodes, after that of the first: enough to notice a collapse
EPISODE_LINES, EPISODE_WIDTH = 20, 70  # at most; with the time before it, 80 columns


def played_line(step: int, steps: int, values: Mapping[str, float]) -> str:
    """How the episodes of a step went, and where its seconds went."""
    seconds = ", ".join(
        f"{phase.replace('_', ' ')} {values[f'time/{phase}']:.1f}"
        for phase in PHASES
        if values.get(f"time/{phase}", 0.0) >= 0.05
    )
    return (
        f"step {step}/{steps}: success {values.get('rollout/success', 0.0):.2f}, "
        f"reward {values.get('rollout/reward', 0.0):.2f}, "
        f"{values.get('rollout/turns_per_episode', 0.0):.1f} turns, "
        f"{values.get('rollout/malformed', 0.0):.0%} malformed, "
        f"{values.get('rollout/tokens_per_second', 0.0):.0f} tokens/s; seconds: {seconds}"
    )


def trained_line(step: int, values: Mapping[str, float], batch: Sequence[SampleGroup], config: Config) -> str:
    """What a step trained, or why nothing."""
    if not values.get("learner/samples"):
        return f"step {step} trained nothing: {why_nothing(batch, config)}"
    figures = [f"loss {values[name]:.4f}" for name in ("learner/loss",) if name in values]
    if "learner/signal_loss" in values:
        figures.append(f"teacher's loss {values['learner/signal_loss']:.4f}")
    if values.get("learner/strength") and values.get("learner/teacher_tokens"):
        scored, strength = values["learner/teacher_tokens"], values["learner/strength"]
        figures.append(f"teacher weighs {scored:,.0f} tokens with λ = {strength:.2f}")
    if values.get("learner/signal_tokens"):
        figures.append(f"{values['learner/signal_tokens']:,.0f} tokens distilled")
    if "learner/mismatch_kl" in values:
        figures.append(f"mismatch KL {values['learner/mismatch_kl']:.4f}")
    tokens = f" ({values['learner/tokens']:,.0f} tokens)" if "learner/tokens" in values else ""
    learning = sum(group.informative for group in batch)
    return (
        f"step {step} trained on {values['learner/samples']:.0f} samples{tokens}, "
        f"{learning} of {len(batch)} groups with an advantage: {', '.join(figures)}"
    )


def why_nothing(batch: Sequence[SampleGroup], config: Config) -> str:
    """Why neither loss of the policy had a sample."""
    reasons = []
    if config.loss.policy > 0 and not any(group.informative for group in batch):
        reasons.append("all returns in every group were equal: nothing to learn from")
    elif config.loss.policy > 0:
        reasons.append("the groups with an advantage lack log-probs of the reference policy")
    if config.signal.loss_weight > 0:
        reasons.append("the teacher scored no turn, as none had a hint")
    return ", and ".join(reasons) or "no loss of the policy has a weight"


def nothing_trained(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for the end of a run of which no step trained anything; `rows` are its metrics."""
    steps = [row for row in rows if row["kind"] == "train"]
    if not steps or any(row.get("learner/samples") for row in steps):
        return []
    return [
        f"None of the {len(steps)} steps trained anything (log.txt says why): the model is what it was "
        "before RL. Groups need episodes with different returns: start from a model that sometimes succeeds "
        "(sft.demos), choose easier tasks, or raise rollout.group_size."
    ]


def evaluation_seconds(
    config: Config, evaluations: Sequence[Evaluation], values: Mapping[str, float]
) -> float:
    """Seconds that the next evaluation will take: as the last one, or else as the episodes of this step."""
    episodes = config.evaluate.episodes * len(config.evaluate.panels)
    if evaluations:
        last = evaluations[-1]
        return last.seconds / max(1, last.episodes + last.missing) * episodes
    rate = values.get("rollout/episodes_per_second", 0.0)
    return episodes / rate if rate else 0.0


def excerpt(episode: Mapping[str, Any], width: int = EPISODE_WIDTH, most: int = EPISODE_LINES) -> list[str]:
    """An episode of trajectories/*.jsonl in at most `most` lines of `width` columns."""
    turns = episode["turns"]
    ending = "solved" if episode["success"] else "not solved"
    head = (
        f"an episode: task {episode['task']}, {ending}, reward {episode['reward']:g}, {len(turns)} turns, "
        f"ended: {episode['ended']}"
    )
    room = (most - 2) // 2  # turns of two lines each, after the head and the line of what is left out
    shown = list(enumerate(turns, start=1))
    if len(shown) > room:
        shown = [*shown[: (room + 1) // 2], *shown[len(shown) - room // 2 :]]
    lines, last = [one_line(head, width)], 0
    for number, turn in shown:
        if number != last + 1:
            lines.append(f"  … {number - last - 1} turns")
        mark = "" if turn["valid"] else " (malformed)" if turn["action"] is None else " (inadmissible)"
        said = turn["response"] or "(nothing)"
        for before, text in ((f"  {number:>2} sees ", turn["observation"]), (f"     says{mark} ", said)):
            lines.append(before + one_line(text, width - len(before)))
        last = number
    return lines
