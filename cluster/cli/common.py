"""What the commands share: their arguments, how they read a recipe, and how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import typer

from hindsight.cluster.report.text import PlainConsole
from hindsight.configs.check import check_config
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.paths import lasting
from hindsight.configs.schema import Config

Recipe = Annotated[str, typer.Argument(help="name of a built-in recipe, or path of a YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings as key=value, such as steps=200 learner.lr=1e-5")
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: auto or an address; by default a local Ray is started"),
]


def read_config(recipe: str, overrides: list[str] | None) -> Config:
    """The resolved configuration; every problem in it ends the command."""
    try:
        config = load_config(recipe, overrides or [])
    except ConfigError as error:
        fail(str(error))
    problems = problems_of(config)
    if problems:
        fail("\n".join(problems))
    return replace(config, out=str(lasting(config.out)))


def problems_of(config: Config) -> list[str]:
    """Everything that is wrong with a configuration, what its environment refuses included."""
    from hindsight.envs.base import EnvError
    from hindsight.envs.registry import make_family

    try:
        make_family(config.env)
    except EnvError as error:
        return [*check_config(config), str(error)]
    return check_config(config)


def run_to_end(start: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; an expected error becomes a message and exit status 1, a signal 130 or 143."""
    from hindsight.cluster.commands import expected_errors
    from hindsight.cluster.failures import Interrupted

    try:
        asyncio.run(start())
    except expected_errors() as error:
        fail(str(error))
    except Interrupted as stop:
        again = "the same command with resume=auto continues from the last checkpoint"
        PlainConsole(stderr=True).print(f"{stop}; {again}", style="yellow", soft_wrap=True)
        raise typer.Exit(stop.status) from None


def fail(message: str) -> NoReturn:
    """End the command with a message and exit status 1."""
    PlainConsole(stderr=True).print(message, style="red", soft_wrap=True)
    raise typer.Exit(code=1)
