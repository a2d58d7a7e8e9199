"""The example of a judge asks about failed attempts only, and its answer reaches the last turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

from feedback_toys import kitchen

from hindsight.configs.load import load_config
from hindsight.feedback.hints import gather_hints
from hindsight.feedback.judge_client import Answer

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/judge.py"


def gathered(answer, turns):
    """The hints of the kitchen's group, of which 0 and 2 failed, and the questions that were asked."""
    asked = []

    async def ask(question, schema=None):
        asked.append(question.write(400))
        return Answer(answer)

    feedback = load_config(
        None, [f"feedback.sources=[{EXAMPLE}]", f"feedback.advised_turns={turns}"]
    ).feedback
    return asyncio.run(gather_hints(kitchen(), feedback, ask, whole_turns=True)), asked


def test_advice_on_the_last_turns_of_failed_attempts() -> None:
    hints, asked = gathered("<think>Hm.</think>Open the\nfridge first.", turns=2)
    assert hints.texts == dict.fromkeys(
        [(0, 1), (0, 2), (2, 1), (2, 2)], "Advice on this attempt:\nOpen the fridge first."
    )
    assert len(asked) == 2 and all("The attempt failed." in one and "take the mug" in one for one in asked)


def test_more_turns_than_the_attempt_has_and_an_empty_answer() -> None:
    assert len(gathered("Look.", turns=9)[0].texts) == 6
    hints, _ = gathered("<think>Nothing to say.</think>", turns=2)
    assert hints.texts == {} and hints.unreadable == 2
