"""The command line: `hindsight envs list | install | check | play`."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import replace
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hindsight.cluster.cli.common import Overrides, fail
from hindsight.cluster.report.text import PlainConsole
from hindsight.configs.load import ConfigError, load_config
from hindsight.configs.packages import missing
from hindsight.configs.registry import ENVIRONMENTS
from hindsight.configs.schema import Config, Env
from hindsight.envs.base import ActionFormat, EnvError, EnvFamily, Observation
from hindsight.envs.reference import ReferenceResults, play_references
from hindsight.envs.registry import make_family
from hindsight.envs.tasks import TaskSpec

app = typer.Typer(no_args_is_help=True, help="List, install, check and play the environments.")
BUILTIN = ", ".join(ENVIRONMENTS.builtin)
Name = Annotated[str, typer.Argument(help=f"{BUILTIN}, FILE.py or module:Name")]
Names = Annotated[str, typer.Argument(help=f"{BUILTIN}, FILE.py, module:Name or all")]
console = PlainConsole()


@app.command("list")
def show_environments() -> None:
    """List the built-in environments, and what is not installed."""
    table = Table("environment", "not installed")
    for name in ENVIRONMENTS.builtin:
        needed = ENVIRONMENTS.packages.get(name)
        table.add_row(name, (needed and missing(needed)) or "–")
    console.print(table)
    console.print("Or one of your own: FILE.py or module:Name (docs/extending.md).")


@app.command()
def install(name: Annotated[str, typer.Argument(help=f"{BUILTIN} or all")] = "all") -> None:
    """Create an environment's own interpreter, if its packages conflict with the main one."""
    from hindsight.envs.runtime.interpreters import install_interpreter

    for chosen in _names(name):
        try:
            install_interpreter(chosen, tell=console.print)
        except EnvError as error:
            fail(str(error))


@app.command()
def check(
    name: Names = "all",
    tasks: Annotated[int, typer.Option(help="maximum number of tasks per split", min=1)] = 120,
) -> None:
    """Run reference solutions in killable processes and report success."""
    table = Table(title="reference solutions")
    for column in ("environment", "tasks", "solved", "mean reward", "turns", "turns/s per slot"):
        table.add_column(column, justify="left" if column == "environment" else "right")
    problems = []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        for chosen in _names(name):
            try:
                played = _check(chosen, tasks, progress)
            except EnvError as error:
                table.add_row(chosen, "0", "-", "-", "-", "-")
                problems.append(f"{chosen}: {error}")
                continue
            table.add_row(chosen, *_figures(played))
            problems += [f"{chosen}: {problem}" for problem in played.problems]
    console.print(table)
    if problems:
        fail("\n".join(problems[:20]))


@app.command()
def play(
    name: Name,
    overrides: Overrides = None,
    task: Annotated[str, typer.Option(help="task id (default: the first training task)")] = "",
    data: Annotated[str | None, typer.Option(help="folder of official data")] = None,
    prompt: Annotated[bool, typer.Option(help="print what a model is shown at the first turn")] = False,
    model: Annotated[str, typer.Option(help="with --prompt: whose chat template and tokenizer")] = "nano",
) -> None:
    """Play an episode in the terminal: ? shows the reference solution, Ctrl-D ends.

    A tool is called as `name {"its": "arguments"}`; a block of code ends with an empty line.
    """
    from hindsight.rollout.models import ModelMissing, ModelUnfit
    from hindsight.rollout.template import TemplateError

    try:
        config = load_config(None, [f"env.name={name}", *(overrides or [])])
        env = replace(config.env, data=data) if data else config.env
        family = _family(env)
        spec = _find(family, task)
        if prompt:
            _print_prompt(config, family, spec, model)
        else:
            _play(family, spec)
    except (ConfigError, EnvError, ModelMissing, ModelUnfit, TemplateError) as error:
        fail(str(error))


def _find(family: EnvFamily, task: str) -> TaskSpec:
    """The task with this id, or the first one of training."""
    manifest = family.manifest()
    specs = {spec.id: spec for spec in (*manifest.train, *manifest.evaluation)}
    if task and task not in specs:
        fail(f"{family.name} has no task {task!r}; for example: {', '.join(list(specs)[:5])}")
    return specs[task] if task else next(iter(specs.values()))


def _print_prompt(config: Config, family: EnvFamily, spec: TaskSpec, model: str) -> None:
    """Print the first prompt of a task to stdout, and its length to stderr."""
    from hindsight.rollout.conversation import Conversation
    from hindsight.rollout.models import resolve
    from hindsight.rollout.render import load_renderer

    renderer = load_renderer(str(resolve(model)), config)
    with closing(family.make()) as instance:
        _, ids = Conversation(renderer).prompt(instance.reset(spec))
    typer.echo(renderer.decode(ids), nl=False)
    typer.echo(f"\n{len(ids)} tokens; model.max_length = {config.model.max_length}", err=True)


def _play(family: EnvFamily, spec: TaskSpec) -> None:
    """Run one episode interactively. Raises EnvError."""
    instance = family.make()
    try:
        reference = instance.reference(spec)
        first = observation = instance.reset(spec)
        if first.rules:
            console.print(first.rules, style="dim")
        while True:
            _show(observation)
            action = _ask(family.action_format, {tool["name"] for tool in first.tools})
            if action == "?":
                console.print("\n".join(reference or ["this task has no reference solution"]), style="dim")
                continue
            result = instance.step(action)
            observation = result.observation
            if result.terminated or result.truncated:
                _show(observation)
                ending = "solved" if result.success else "not solved"
                console.print(f"{ending}, reward {result.reward:g}", style="bold")
                return
    finally:
        instance.close()


def _names(name: str) -> list[str]:
    return list(ENVIRONMENTS.builtin) if name == "all" else [name]


def _family(env: Env) -> EnvFamily:
    try:
        return make_family(env)
    except EnvError as error:
        fail(str(error))
        raise


def _check(name: str, tasks: int, progress: Progress) -> ReferenceResults:
    env = Env(name=name, train_tasks=tasks, eval_tasks=tasks, max_turns=200)
    family = make_family(env)  # its EnvError is one line of the table
    bar = progress.add_task(f"{name}: preparing", total=None)
    manifest = family.manifest()
    tasks_of_both = [*manifest.train, *manifest.evaluation]
    progress.update(bar, description=name, total=len(tasks_of_both))
    played = asyncio.run(
        play_references(
            family, env, tasks_of_both, lambda so_far: progress.update(bar, completed=so_far.tasks)
        )
    )
    progress.remove_task(bar)
    return played


def _figures(played: ReferenceResults) -> list[str]:
    tasks = played.tasks - played.unsolvable
    if not tasks:  # nothing to play: its tasks can be reset, and that is all that is known
        return [str(played.tasks), "-", "-", "-", "-"]
    return [
        str(played.tasks),
        f"{played.solved / tasks:.1%}",
        f"{played.reward / tasks:.3f}",
        f"{played.turns / tasks:.1f}",
        f"{played.turns / max(1e-9, played.seconds):.1f}",
    ]


def _show(observation: Observation) -> None:
    console.print(observation.text)
    if observation.actions:
        console.print(" · ".join(observation.actions), style="cyan")


def _ask(action_format: ActionFormat, tools: set[str]) -> str:
    """Ask for an action, in the environment's action format."""
    try:
        lines = [console.input(Text("> ", "bold"))]
        while action_format == "code" and lines[-1].strip() and lines[0] != "?":
            lines.append(console.input(Text(". ", "bold")))
    except EOFError:
        raise typer.Exit(code=0) from None
    typed = "\n".join(lines).strip()
    name, _, arguments = typed.partition(" ")
    if action_format == "tools" and name in tools:
        return f'<tool_call>{{"name": "{name}", "arguments": {arguments or "{}"}}}</tool_call>'
    return typed
