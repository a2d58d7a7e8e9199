"""Sizes of prompts and actions, played by reference solutions: what `hindsight plan --budget` assumes.

    python -m benchmarks.prompts [--tasks 16] [--model smollm2-135m]

Tasks are those that are used without official data, prompts those of the GPU recipes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import typer
from rich.console import Console
from rich.table import Table

from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.envs.registry import make_family
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.models import resolve
from hindsight.rollout.render import load_renderer

RECIPES = {
    "alfworld_7b_gpu": [],
    "webshop_7b_gpu": [],
    "taubench_4b_gpu": ["env.user.source=scripted"],
    "appworld_4b_gpu": [],
    "bfcl_4b_gpu": [],
    "searchqa": [],
}
UNBOUNDED = 100_000  # tokens: no prompt is shortened


def sizes(config: Config, model: str, tasks: int) -> dict[str, list[int]]:
    """Tokens of first prompts, what each later turn adds (or whole later prompts), and actions."""
    config = replace(config, model=replace(config.model, max_length=UNBOUNDED))
    renderer, family = load_renderer(str(resolve(model)), config), make_family(config.env)
    found: dict[str, list[int]] = defaultdict(list)
    with closing(family.make()) as env:
        for task in family.manifest().train[:tasks]:
            observation, chat, before = env.reset(task), Conversation(renderer), 0
            for action in env.reference(task) or []:
                _, prompt = chat.prompt(observation)
                grows = config.prompt.preset == "history" and before
                found["later" if before else "first"].append(len(prompt) - (before if grows else 0))
                response = renderer.respond(action)
                found["action"].append(len(response))
                chat.append_sampled(response)
                before = len(prompt) + len(response)
                result = env.step(action)
                observation = result.observation
                if result.terminated or result.truncated:
                    break
    return found


def shown(values: Sequence[int]) -> str:
    """Mean [least, most]."""
    return f"{statistics.mean(values):,.0f} [{min(values):,}, {max(values):,}]" if values else "–"


def main(tasks: int = 16, model: str = "smollm2-135m") -> None:
    """Print tokens, mean [least, most]."""
    table = Table("recipe", "prompts", "first prompt", "later: added, or whole", "action", title=model)
    for recipe, own in RECIPES.items():
        config = load_config(
            recipe, [f"env.train_tasks={tasks}", "env.eval_tasks=4", "env.max_turns=100", *own]
        )
        found = sizes(config, model, tasks)
        cells = [shown(found[name]) for name in ("first", "later", "action")]
        table.add_row(recipe, config.prompt.preset, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
