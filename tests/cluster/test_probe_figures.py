"""The probe's figures and verdicts, by numbers that are worked out by hand."""

from __future__ import annotations

import pytest

from hindsight.cluster.outcomes import Figure
from hindsight.cluster.probe.figures import ProbeRow, ProbeVerdict, judge, measures, probed, sentence


def row(task="a", without=(-1.0, -2.0), shown=(-0.5, -2.5), other=(-1.0, -1.0), clipped=0.5, feedback="f"):
    return ProbeRow(feedback, task, 0, ("go", "look"), ("h", "i"), without, shown, other, clipped)


def test_measures_of_a_pair():
    # shifts: own 0.5 and −0.5; of the other task's hint 0 and 1
    assert measures(row()) == {
        "without": 1.0,
        "with": 1.0,
        "shift": 1.0,
        "margin": 1.0,
        "lead_without": 1.0,
        "lead_with": 2.0,
        "up_better": 0.5,
        "up_worse": -0.5,
        "other_with": 0.5,
        "other_shift": 0.0,
        "other_margin": -1.0,
        "content": 1.0,
        "content_margin": 2.0,
        "clipped": 0.5,
    }
    bare = measures(row(without=(-2.0, -1.0), shown=(-2.0, -1.0), other=None, clipped=None))
    assert bare == {
        "without": 0.0, "with": 0.0, "shift": 0.5, "margin": 0.0, "up_better": 0.0, "up_worse": 0.0,
        "lead_without": -1.0, "lead_with": -1.0,
    }  # fmt: skip


def test_a_task_counts_once_however_many_pairs_it_has():
    same = (-1.0, -2.0)
    rows = [row("a"), row("a", shown=same), row("b", shown=(-2.0, -2.0)), row("c", feedback="another")]
    found = probed("f", rows)
    assert (found.tasks, found.pairs) == (2, 3)
    # shift: a has 1 and ½, b has 0; margin: a has 1 and 0, b has −1
    assert found.figures["shift"].mean == pytest.approx((0.75 + 0.0) / 2)
    assert found.figures["margin"].mean == pytest.approx((0.5 - 1.0) / 2)
    assert (found.figures["shift"].low, found.figures["shift"].high) == (0.0, 0.75)
    assert probed("none", rows).tasks == 0


UNSURE, SMALL = Figure(0.0, -0.2, 0.2), Figure(0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    ("shift", "content", "verdict"),
    [
        ((0.6, 0.9), Figure(0.3, 0.1, 0.5), ProbeVerdict.READS),
        ((0.4, 0.6), Figure(0.3, 0.1, 0.5), ProbeVerdict.PARTLY),
        ((0.1, 0.4), Figure(0.3, 0.1, 0.5), ProbeVerdict.PARTLY),
        ((0.4, 0.6), Figure(-0.3, -0.5, -0.1), ProbeVerdict.MISREADS),
        ((0.6, 0.9), UNSURE, ProbeVerdict.ANY_HINT),
        ((0.6, 0.9), None, ProbeVerdict.NO_CONTROL),
        ((0.2, 0.4), UNSURE, ProbeVerdict.DISTURBED),
        ((0.4, 0.6), SMALL, ProbeVerdict.IGNORES),
        ((0.4, 0.6), UNSURE, ProbeVerdict.UNDECIDED),
        ((0.4, 0.7), SMALL, ProbeVerdict.UNDECIDED),
        ((0.3, 0.6), SMALL, ProbeVerdict.UNDECIDED),
    ],
)
def test_verdicts(shift, content, verdict):
    figures = {"shift": Figure(0.5, *shift)} | ({"content": content} if content else {})
    assert judge(12, figures) == verdict
    assert judge(11, figures) == ProbeVerdict.TOO_FEW


def test_a_verdict_in_words():
    read = [row(f"t{n}", feedback="immediate, per step") for n in range(12)]
    told = sentence(probed("immediate, per step", read), "nano", "webshop")
    assert told == "nano reads “immediate, per step” in webshop: it moves toward the better action."
    ignored = [row(f"t{n}", shown=(-1.0, -2.0), other=(-1.0, -2.0)) for n in range(12)]
    assert sentence(probed("f", ignored), "nano", "webshop") == "nano ignores “f” in webshop."
