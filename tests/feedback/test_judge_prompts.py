"""Judges' questions against the papers' published prompts: what they show and ask for. The wording is ours.

SERL (arXiv 2605.19447): 2 to 4 sentences; the first says whether the attempt succeeded; temperature 0.
HINT-SD (2605.17873): task, final reward, and every step with action, output, reward and info, of which the
last 12,000 characters are kept; JSON with up to three targets, the earliest first, each with a correction
of fewer than three sentences; temperature 0.6, top-p 0.95, at most 512 tokens.
HERO (2606.11559) has published no prompt. Its paper describes one: task, all turns and the final reward;
for each turn whether it was needed and valid, why it failed, and optionally a better action. The four
verdicts, the limit of 60 words and the temperature are ours.
"""

from __future__ import annotations

import json
import re

from feedback_toys import feedback, kitchen, show

from hindsight.configs.load import load_config
from hindsight.feedback.source import JudgedSource, make_sources
from hindsight.feedback.transcript import Style

INFO = '{"steps": 3}'  # of the last turn of the failed attempt


def question(source: str, characters: int = 12_000, **settings: int) -> str:
    """What the source asks about the failed attempt."""
    chosen = feedback(source, **settings)
    [judge] = make_sources(chosen)
    assert isinstance(judge, JudgedSource)
    asked = judge.question(kitchen(), 0, Style(chosen, show=show))
    assert asked is not None
    return asked.write(characters)


def in_order(text: str, *parts: str) -> bool:
    return re.search(".*".join(parts), text, re.S) is not None


def test_serl() -> None:
    asked = question("judge")
    assert in_order(asked, "take the mug", "go to desk 1", "2 to 4", "succeeded", "failed")
    assert load_config("alfworld", ["method=serl_judge"]).judge.temperature == 0.0


def test_hero() -> None:
    asked = question("reflect")
    assert in_order(asked, "take the mug", "go to desk 1", "you see nothing", "take mug 1", "reward 0")
    assert in_order(asked, "each of its 3 turns", "needed", "valid", "why not")
    [form] = re.findall(r'\{"turns": \[(\{.*?\}), …\]\}', asked)
    assert json.loads(form).keys() == {"turn", "verdict", "cause", "fix"} and "or null" in asked
    assert all(verdict in asked for verdict in ("good", "unnecessary", "invalid", "wrong"))


def test_hint_sd() -> None:
    asked, three = question("target"), question("target", targets=3)
    step = ("Turn 3", "take mug 1", "Nothing happens", "Reward: 0", re.escape(INFO))
    assert in_order(asked, "take the mug", "failure, reward 0", "Turn 1", *step)
    assert all(
        in_order(one, "first", "fewer than three sentences", '"turn"', '"correction"')
        for one in (asked, three)
    )
    assert "the one to 3 turns" in three
    short = question("target", 150)
    assert INFO in short and "go to desk 1" not in short
    judge = load_config("bfcl", ["method=hint_sd"]).judge
    assert (judge.temperature, judge.top_p, judge.max_tokens, judge.characters) == (0.6, 0.95, 512, 12_000)
