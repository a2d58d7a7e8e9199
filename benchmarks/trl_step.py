"""A whole training step (rollouts and update) against TRL's GRPO on the same episodes, model and sampling.

    python -m benchmarks.trl_step [RECIPE] [--steps 3] KEY=VALUE…

Ours is `hindsight train RECIPE method=grpo`. TRL's is `GRPOTrainer` with a `rollout_func`: turn by turn, the
trainer's own `_generate_single_turn` answers all episodes that continue, as its loop for tools does, and then
their environments take a step, in this process. It generates with transformers: TRL 1.16 supports
vLLM up to 0.31. Prompts, chat format and environments are ours in both. The first step is not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from benchmarks.learner import find_trl
from benchmarks.methods import train
from benchmarks.ratio import ratio_line

from hindsight.configs.load import load_config
from hindsight.configs.schema import Config
from hindsight.envs.base import Observation, TextEnv
from hindsight.envs.registry import make_family
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.models import resolve
from hindsight.rollout.render import Renderer, load_renderer


class Episode:
    """One episode of TRL's rollouts."""

    def __init__(self, env: TextEnv, task: Any, renderer: Renderer, turns: int) -> None:
        self.env, self.renderer, self.left = env, renderer, turns
        self.conversation, self.success, self.over = Conversation(renderer), False, False
        self.ask(env.reset(task))
        self.prompt = self.context
        self.mask: list[int] = []  # of what follows the prompt: 1 where the model wrote

    def ask(self, observation: Observation) -> None:
        """Make the context of the next turn."""
        _, ids = self.conversation.prompt(observation)
        self.context = ids.tolist()

    def answer(self, ids: list[int]) -> None:
        """Take a response and the step of the environment."""
        after = len(self.prompt) + len(self.mask)
        self.mask += [0] * (len(self.context) - after) + [1] * len(ids)
        reply = self.conversation.append_sampled(np.asarray(ids, np.int32))
        self.left -= 1
        self.whole = self.context + ids
        result = self.env.step(reply.action or "nothing")
        self.success, self.over = result.success, result.terminated or result.truncated or not self.left
        if not self.over:
            self.ask(result.observation)


def roll_out(config: Config, renderer: Renderer, prompts: list[str], trainer: Any) -> dict[str, Any]:
    """TRL's `rollout_func`: all episodes in lock-step."""
    family = make_family(config.env)
    tasks = {task.id: task for task in family.manifest().train}
    episodes = [Episode(family.make(), tasks[name], renderer, config.env.max_turns) for name in prompts]
    while going := [one for one in episodes if not one.over]:
        answers, _ = trainer._generate_single_turn([one.context for one in going], None, {}, 1)
        for one, ids in zip(going, answers, strict=True):
            one.answer(ids)
    return {
        "prompt_ids": [one.prompt for one in episodes],
        "completion_ids": [one.whole[len(one.prompt) :] for one in episodes],
        "env_mask": [one.mask for one in episodes],
        "logprobs": None,
        "success": [float(one.success) for one in episodes],
    }


def train_trl(config: Config, steps: int) -> list[float]:
    """Seconds of each of TRL's steps but the first."""
    find_trl()
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    path, size = resolve(config.model.path), config.rollout.group_size
    renderer, seconds = load_renderer(str(path), config), []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    names = [task.id for task in make_family(config.env).manifest().train]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        reward_funcs=lambda success, **_: success,
        rollout_func=lambda prompts, own: roll_out(config, renderer, prompts, own),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=config.rollout.num_groups * size,
            num_generations=size,
            max_completion_length=config.rollout.max_tokens,
            max_steps=steps + 1,
            learning_rate=config.learner.lr,
            temperature=1.0,
            beta=0.0,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": names}),
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds[1:]


def main(
    words: Annotated[list[str] | None, typer.Argument(help="a recipe, and settings as key=value")] = None,
    steps: int = 3,
) -> None:
    """Print seconds of both, and their ratio."""
    given = words or []
    recipe = next((word for word in given if "=" not in word), "nano")
    overrides = ["learner.gradient_checkpointing=false", *(word for word in given if "=" in word)]
    config = load_config(recipe, ["method=grpo", *overrides])
    theirs = train_trl(config, steps)
    ours = [row["time/step"] for row in train(recipe, "grpo", steps, overrides)]
    print(f"seconds of a step: ours {statistics.median(ours):.1f}, TRL's {statistics.median(theirs):.1f}")
    print(ratio_line("whole step ÷ TRL", [b / a for a, b in zip(ours, theirs, strict=True)]))


if __name__ == "__main__":
    typer.run(main)
