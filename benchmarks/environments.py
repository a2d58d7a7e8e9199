"""Steps per second of environments against upstream's own loop on the same episodes.

    python -m benchmarks.environments [alfworld appworld bfcl taubench] [--episodes 6] [--rounds 3]

Each way plays the reference solutions of the same tasks in a process of its own, in turn, resets and verdicts
included. Upstream's loop is
    alfworld  `textworld.gym` as upstream's `AlfredTWEnv` sets it up, one game at a time
    appworld  `AppWorld.execute` and `evaluate` in its own interpreter, without a sandbox
    bfcl      `execute_multi_turn_func_call` for each call, then `multi_turn_checker`
    taubench  tau2's orchestrator and evaluator on the environments of tau2's registry; our scripted
              customer
The first round of each, which fills caches, is not counted.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmarks.isolation import spread
from benchmarks.ratio import ratio_line
from rich.console import Console
from rich.table import Table

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvFamily, TextEnv
from hindsight.envs.registry import make_family
from hindsight.envs.tasks import TaskSpec

Play = Callable[[TaskSpec, Sequence[str]], int]  # an episode; how many steps it had
RUNS = itertools.count()


@cache
def family(name: str, tasks: int) -> EnvFamily:
    """An environment with `tasks` training tasks."""
    return make_family(Env(name=name, train_tasks=tasks, eval_tasks=6, max_turns=200))


def ours(env: TextEnv) -> Play:
    """Our environment, in this process."""

    def play(task: TaskSpec, actions: Sequence[str]) -> int:
        env.reset(task)
        for number, action in enumerate(actions, 1):
            result = env.step(action)
            if result.terminated or result.truncated:
                return number
        env.finish()
        return len(actions)

    return play


def alfworld(name: str, tasks: int) -> Play:
    """Upstream's environment for one game after another."""
    import textworld.gym
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler, AlfredInfos

    made = family(name, tasks)
    made.manifest()  # writes the games
    infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])

    def play(task: TaskSpec, actions: Sequence[str]) -> int:
        path = Path(made.cache, "alfworld", "games", task.data["game"])
        wrappers = [AlfredDemangler(shuffle=False), AlfredInfos]
        made_id = textworld.gym.register_games(
            [str(path)], infos, batch_size=1, asynchronous=False, max_episode_steps=200, wrappers=wrappers
        )
        env = textworld.gym.make(made_id)
        env.reset()
        steps = 0
        for action in actions:
            _, _, done, _ = env.step([action])
            steps += 1
            if done[0]:
                break
        env.close()
        return steps

    return play


def bfcl(name: str, tasks: int) -> Play:
    """Upstream's execution of calls, and its check of the conversation."""
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

    from hindsight.envs.bfcl.data import entries

    def play(task: TaskSpec, actions: Sequence[str]) -> int:
        entry, who = entries()[task.id], f"run{next(RUNS)}"  # upstream keeps instances by this name
        gold = [[f"{one.name}({arguments(one.arguments)})" for one in turn] for turn in entry.gold]
        config, classes = dict(entry.config), list(entry.classes)
        for turn in gold:
            for call in turn:
                long = entry.kind == "long_context"
                execute_multi_turn_func_call([call], config, classes, who, task.id, long)
        test = {"initial_config": config, "involved_classes": classes, "id": task.id}
        answers = [[[call] for call in turn] for turn in gold]
        multi_turn_checker(answers, gold, test, f"multi_turn_{entry.kind}", who)
        return len(actions)

    return play


def arguments(named: dict[str, Any]) -> str:
    """Arguments of a call as Python writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in named.items())


def taubench(name: str, tasks: int) -> Play:
    """Our client of tau2's orchestrator, with the environments that tau2 makes."""
    from hindsight.envs.taubench import env as module
    from hindsight.envs.taubench.upstream import registry

    client: Any = module
    client.make_environment = lambda kind: registry.get_env_constructor(kind)()
    client.registered = lambda kind: kind  # whose environment the evaluator makes
    return ours(family(name, tasks).make())


LOOP = """
import json, os, shutil, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from appworld import AppWorld, update_root
update_root(os.getcwd())
for line in sys.stdin:
    task, actions = json.loads(line)
    with AppWorld(task, "upstream", load_ground_truth=True) as world:
        for code in actions:
            world.execute(code)
            if world.task_completed():
                break
        world.evaluate()
    print("done", file=out, flush=True)
shutil.rmtree(os.getcwd())
"""


def appworld(name: str, tasks: int) -> Play:
    """Upstream's `AppWorld` in its own interpreter, which starts once, on a folder of its own."""
    from hindsight.envs.runtime.interpreters import interpreter

    made: Any = family(name, tasks)
    folder = Path(tempfile.mkdtemp(prefix="hindsight-bench-"))
    (folder / "data").symlink_to(made.root / "data")
    command = [str(interpreter(name, made.cache)), "-c", LOOP]
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    asked, answers = process.stdin, process.stdout

    def play(task: TaskSpec, actions: Sequence[str]) -> int:
        print(json.dumps([task.id, list(actions)]), file=asked, flush=True)
        if answers.readline() != "done\n":
            raise RuntimeError(f"upstream's AppWorld failed on {task.id}")
        return len(actions)

    return play


UPSTREAM: dict[str, Callable[[str, int], Play]] = {
    "alfworld": alfworld,
    "appworld": appworld,
    "bfcl": bfcl,
    "taubench": taubench,
}


@cache
def player(name: str, way: str, tasks: int) -> Play:
    """Who plays in this process."""
    return ours(family(name, tasks).make()) if way == "ours" else UPSTREAM[name](name, tasks)


def solutions(name: str, tasks: int) -> list[tuple[TaskSpec, list[str]]]:
    """What both ways play."""
    made = family(name, tasks)
    env = made.make()
    return [(task, list(env.reference(task) or ())) for task in made.manifest().train]


def rate(name: str, way: str, played: list[tuple[TaskSpec, list[str]]]) -> float:
    """Steps per second over whole episodes."""
    play = player(name, way, len(played))
    began = time.perf_counter()
    steps = sum(play(task, actions) for task, actions in played)
    return steps / (time.perf_counter() - began)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="environments")] = None,
    episodes: int = 6,
    rounds: int = 3,
) -> None:
    """Print steps per second of both ways, and their ratio."""
    table = Table("environment", "steps/s, ours", "upstream's", title=f"{episodes} episodes, {rounds} rounds")
    lines = []
    for name in names or UPSTREAM:
        found: dict[str, list[float]] = {"ours": [], "upstream": []}
        spawn = get_context("spawn")
        with ProcessPoolExecutor(1, spawn) as one, ProcessPoolExecutor(1, spawn) as other:
            played = one.submit(solutions, name, episodes).result()
            for number in range(rounds + 1):
                for pool, (way, rates) in zip((one, other), found.items(), strict=True):
                    value = pool.submit(rate, name, way, played).result()
                    rates += [value] if number else []
        table.add_row(name, *(spread(rates, ",.1f") for rates in found.values()))
        pairs = zip(found["ours"], found["upstream"], strict=True)
        lines.append(ratio_line(f"environment steps/s ÷ upstream, {name}", [a / b for a, b in pairs]))
    Console().print(table)
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
