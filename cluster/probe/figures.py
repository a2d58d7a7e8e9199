"""What the scores of pairs say: figures with intervals over tasks, and a verdict. Pure.

shift     mean log-prob per token with the hint − without it: the mean gap Δ of an action's tokens
prefers   1 if the better action has the higher value, ½ if both have the same, else 0
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hindsight.cluster.outcomes import Figure, mean_with_interval

FEWEST_TASKS = 12  # with fewer, the bootstrap's intervals are too narrow
WEAK = 0.15  # an effect on the share of pairs that is surely smaller changes little

Two = tuple[float, float]  # of the better and the worse action


@dataclass(frozen=True)
class ProbeRow:
    """The scores of a pair with one feedback; log-probs are means per token."""

    feedback: str
    task: str
    turn: int  # of the better action, from 0
    actions: tuple[str, ...]
    hints: tuple[str, ...]
    without: Two
    shown: Two
    other: Two | None  # None: no other task had a hint
    clipped: float | None  # share of tokens; None: the method's signal has no weights of tokens


class ProbeVerdict(StrEnum):
    """What a model does with the hints."""

    READS = "reads"
    PARTLY = "partly"
    MISREADS = "misreads"
    ANY_HINT = "any hint"
    DISTURBED = "disturbed"
    IGNORES = "ignores"
    UNDECIDED = "undecided"
    NO_CONTROL = "no control"
    TOO_FEW = "too few tasks"


@dataclass(frozen=True)
class Probed:
    """What was found about one feedback."""

    feedback: str
    tasks: int
    pairs: int
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by the names of `measures`

    @property
    def verdict(self) -> ProbeVerdict:
        """Judged by how often the hint shifts the better action further up than the worse one."""
        return judge(self.tasks, self.figures)


def prefers(two: Two) -> float:
    """1 if the better action has the higher value, 0.5 if both have the same, else 0."""
    better, worse = two
    return 0.5 if better == worse else float(better > worse)


def shifts(row: ProbeRow, scores: Two) -> Two:
    """How far a hint moves each action up, in nats per token."""
    return scores[0] - row.without[0], scores[1] - row.without[1]


def measures(row: ProbeRow) -> dict[str, float]:
    """What is averaged.

    without, with        whether the better action is more likely without the hint, and with it
    lead_without, …      by how many nats per token
    shift, margin        whether its shift is larger, and by how many nats per token
    up_better, up_worse  the shifts
    other_shift, …       the same with a hint of another task
    content              shift − other_shift: what the hint's content adds; content_margin of the margins
    clipped              share of tokens whose weight is clipped
    """
    own = shifts(row, row.shown)
    found = {
        "without": prefers(row.without),
        "with": prefers(row.shown),
        "shift": prefers(own),
        "margin": own[0] - own[1],
        "lead_without": row.without[0] - row.without[1],
        "lead_with": row.shown[0] - row.shown[1],
        "up_better": own[0],
        "up_worse": own[1],
    }
    if row.other is not None:
        other = shifts(row, row.other)
        found |= {"other_with": prefers(row.other), "other_shift": prefers(other)}
        found |= {"other_margin": other[0] - other[1], "content": prefers(own) - prefers(other)}
        found["content_margin"] = found["margin"] - found["other_margin"]
    return found if row.clipped is None else found | {"clipped": row.clipped}


def probed(feedback: str, rows: Sequence[ProbeRow]) -> Probed:
    """The figures of one feedback: means over tasks of the mean over a task's pairs."""
    own = [row for row in rows if row.feedback == feedback]
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in own:
        for name, value in measures(row).items():
            found[name][row.task].append(value)
    figures: dict[str, Figure] = {}
    for name, tasks in found.items():
        figure = mean_with_interval({task: sum(values) / len(values) for task, values in tasks.items()})
        if figure is not None:
            figures[name] = figure
    return Probed(feedback, len({row.task for row in own}), len(own), figures)


def judge(tasks: int, figures: Mapping[str, Figure]) -> ProbeVerdict:
    """The verdict on a feedback, from the intervals of `shift` and `content`."""
    if tasks < FEWEST_TASKS:
        return ProbeVerdict.TOO_FEW
    if "content" not in figures:
        return ProbeVerdict.NO_CONTROL
    shift, content = figures["shift"], figures["content"]
    if content.low > 0:
        return ProbeVerdict.READS if shift.low > 0.5 else ProbeVerdict.PARTLY
    if content.high < 0:
        return ProbeVerdict.MISREADS
    if shift.low > 0.5:
        return ProbeVerdict.ANY_HINT
    if shift.high < 0.5:
        return ProbeVerdict.DISTURBED
    small = max(shift.high - 0.5, 0.5 - shift.low, content.high, -content.low) < WEAK
    return ProbeVerdict.IGNORES if small else ProbeVerdict.UNDECIDED


def sentence(one: Probed, model: str, env: str) -> str:
    """The verdict in a sentence."""
    about = f"“{one.feedback}” in {env}"
    match one.verdict:
        case ProbeVerdict.READS:
            return f"{model} reads {about}: it moves toward the better action."
        case ProbeVerdict.PARTLY:
            return f"{model} reads {about} in part: more than a hint of another task, but not enough."
        case ProbeVerdict.MISREADS:
            return f"{model} misreads {about}: a hint of another task would be better."
        case ProbeVerdict.ANY_HINT:
            return f"{model} moves toward the better action with {about}, but with any other hint, too."
        case ProbeVerdict.DISTURBED:
            return f"{model} moves toward the worse action with {about}, as with any other hint."
        case ProbeVerdict.IGNORES:
            return f"{model} ignores {about}."
        case ProbeVerdict.UNDECIDED:
            return f"{about}: undecided, the interval is too wide. Use more tasks."
        case ProbeVerdict.NO_CONTROL:
            return f"{about}: no verdict, as other tasks have no other hints to compare with."
        case ProbeVerdict.TOO_FEW:
            return f"{about}: no verdict from {one.tasks} tasks with pairs, it needs {FEWEST_TASKS}."
