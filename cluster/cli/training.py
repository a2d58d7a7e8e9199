"""The commands that train and evaluate: `hindsight train | sft | eval`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hindsight.cluster.cli.common import AddressOption, Overrides, Recipe, fail, read_config, run_to_end
from hindsight.configs.paths import lasting

app = typer.Typer()


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, address: AddressOption = None) -> None:
    """Train an agent: optional supervised warm start, then RL, then evaluation."""
    from hindsight.cluster.commands import train_run

    config = read_config(recipe, overrides)
    run_to_end(lambda: train_run(config, address))


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, address: AddressOption = None) -> None:
    """Run only the supervised warm start. Continue with `train … resume=auto`."""
    from hindsight.cluster.commands import train_run

    config = read_config(recipe, [*(overrides or []), "steps=0"])
    if config.sft.demos == 0:
        fail("sft.demos = 0 leaves nothing to learn from: set sft.demos=150, for example")
    run_to_end(lambda: train_run(config, address))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="a model folder, a checkpoint folder, or a run's folder")
    ],
    recipe: Annotated[
        str, typer.Argument(help="recipe, if the checkpoint belongs to no run, or to override its settings")
    ] = "",
    overrides: Overrides = None,
    address: AddressOption = None,
) -> None:
    """Evaluate a checkpoint on the panels of `evaluate.panels`, with the settings of its run."""
    from hindsight.cluster.commands import eval_run, find_model, run_of
    from hindsight.cluster.report.run_folder import CONFIG

    model = find_model(lasting(checkpoint))
    if model is None:
        fail(
            f"{checkpoint} holds no model: expected config.json in it, in model/ or in checkpoints/*/model/."
        )
    given, trained = overrides or [], run_of(model)
    if "=" in recipe:
        recipe, given = "", [recipe, *given]
    if not recipe:
        if trained is None:
            fail(f"{checkpoint} is not of a run with a config.yaml: name a recipe after it")
        # The run's folder may have been moved since.
        recipe, given = str(trained / CONFIG), [f"out={json.dumps(str(trained))}", *given]
    config = read_config(recipe, given)
    user_model = config.model.path  # the simulated user stays the model of the training run
    config = replace(config, model=replace(config.model, path=str(model)))
    run_to_end(lambda: eval_run(config, user_model, address))
