"""`hindsight envs play NAME --prompt` prints what the model would be given."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer
from typer.testing import CliRunner

from hindsight.cluster.cli import app
from hindsight.rollout.models import resolve

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/env.py"


def prompt(*arguments: str) -> tuple[str, str]:
    done = CliRunner().invoke(app, ["envs", "play", str(EXAMPLE), "--prompt", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_the_prompt_is_that_of_the_chat_template() -> None:
    shown, told = prompt("env.limit=7", "prompt.think=false", "prompt.list_actions=false", "--task", "4")
    messages = [
        {"role": "system", "content": "Reply with your action only: <action>your action</action>"},
        {"role": "user", "content": "I think of a whole number from 1 to 7. Which is it?"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    assert shown == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert f"{len(tokenizer(shown).input_ids)} tokens; model.max_length = 2048" in told


def test_settings_change_the_prompt_and_wrong_ones_are_refused() -> None:
    assert "<think>" in prompt()[0] and "<think>" not in prompt("prompt.think=false")[0]
    for wrong, message in (("env.limt=7", "Did you mean 'env.limit'?"), ("--task=900", "has no task '900'")):
        done = CliRunner().invoke(app, ["envs", "play", str(EXAMPLE), "--prompt", wrong])
        assert done.exit_code == 1 and message in done.output
