"""BFCL v3 multi-turn: an agent meets a user's requests, turn after turn, by calling the tools of eight APIs.

    user's message ──► answer with calls ──► their results ──► … ──► answer in words ──► next message
                       └── at most 20 such steps a turn ──┘

The rules of `bfcl-eval`: an answer without a call ends the user's turn; one step more than the limit ends the
episode, failed; the reward is 1 where `envs.bfcl.checker` finds nothing wrong, else 0. An answer whose calls
cannot be read is corrected and costs a step, where upstream takes it for the end of the turn.
`env.max_turns` bounds the answers of all turns together: the shipped solutions fit in 20.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bfcl_eval.constants.default_prompts import (
    DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC as MORE_TOOLS,
)
from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvError, EnvFamily, MessageRole, Observation, StepResult, TextEnv, Verdict
from hindsight.envs.bfcl.backends import Backends
from hindsight.envs.bfcl.checker import Referee
from hindsight.envs.bfcl.data import KINDS, Entry, backend, deal_scenarios, draw_splits, entries, subset_of
from hindsight.envs.boundary import LONGEST
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.envs.tool_calls import Call, MalformedCall, read_calls, write_calls

RULES = (
    "You do what a user asks by calling tools. Work on the newest request: call the tools it needs, several "
    "in one answer where none needs another's result, and read what they return. When the request is met, or "
    "cannot be met because a tool or a detail is missing, answer in words without any call. The user then "
    "continues. Do not make calls that the request does not need. Do not make up arguments."
)
DONE, STUCK = "That is done.", "I cannot do that yet: a tool or a detail is missing."
GOODBYE = "The user has no further request."


class BfclEnv(TextEnv):
    """Runs one entry after another, each on its own backends."""

    def _reset(self, task: TaskSpec) -> Observation:
        self._entry = entry = _find(task)
        self._backends, self._referee = Backends(entry), Referee(entry)
        self._turn = 0
        self._open_turn()
        return Observation(
            _message(entry, 0), state_key=self._backends.digest(0), rules=RULES, tools=entry.tools
        )

    def _step(self, action: str) -> StepResult:
        turn = self._turn
        try:
            calls = read_calls(action)
        except MalformedCall as error:
            text, role, over = self._use((), [json.dumps({"error": str(error)})])
        else:
            if calls:
                text, role, over = self._use(calls, [self._backends.call(call) for call in calls])
            else:
                text, role, over = self._end_turn(self._entry)
        verdict = self._judge() if over else Verdict(0.0, False)
        info = {"turn": turn, **verdict.info}
        # An agent may have written half a surrogate pair, or copied a file into itself again and again.
        text = text[:LONGEST].encode(errors="replace").decode()
        observation = Observation(text, state_key=self._backends.digest(self._turn), role=role)
        return StepResult(observation, text, verdict.reward, over, False, verdict.success, info)

    def _finish(self) -> Verdict:
        self._referee.force(f"The episode was cut after {self.turns} answers.")
        return self._judge()

    def reference(self, task: TaskSpec) -> list[str]:
        """The shipped solution, call by call; a turn's calls in one answer where that is over a limit."""
        gold = _find(task).gold
        alone = (
            max(map(len, gold)) <= MAXIMUM_STEP_LIMIT and sum(map(len, gold)) + len(gold) <= self.max_turns
        )
        actions: list[str] = []
        for calls in gold:
            steps = [(call,) for call in calls] if alone else [calls] if calls else []
            actions += [*map(write_calls, steps), DONE if calls else STUCK]
        return actions

    def _judge(self) -> Verdict:
        success = not self._referee.errors
        return Verdict(float(success), success, {"errors": self._referee.errors})

    def _open_turn(self) -> None:
        self._used = 0  # answers with calls, legible or not
        self._steps: list[tuple[Call, ...]] = []
        self._results: list[str] = []

    def _use(self, calls: tuple[Call, ...], results: list[str]) -> tuple[str, MessageRole, bool]:
        """A step within the turn; returns the observation's text and role, and whether the episode ends."""
        self._used += 1
        if calls:
            self._steps.append(calls)
            self._results += results
        over = self._used > MAXIMUM_STEP_LIMIT
        if over:
            self._referee.force(f"The agent took more than {MAXIMUM_STEP_LIMIT} steps in one turn.")
        return "\n".join(results), "tool", over

    def _end_turn(self, entry: Entry) -> tuple[str, MessageRole, bool]:
        self._referee.close(self._steps, self._results, self._backends)
        self._turn += 1
        self._open_turn()
        over = self._turn == len(entry.messages)
        return GOODBYE if over else _message(entry, self._turn), "user", over


class BfclFamily(EnvFamily):
    """The four multi-turn sets that `bfcl-eval` ships, split by the seed."""

    name = "bfcl"
    action_format = "tools"
    turn_limit = 20
    KINDS = KINDS

    def __init__(self, config: Env, cache: Path) -> None:
        """
        Raises:
            ValueError: the configuration names a set that BFCL lacks.
        """
        super().__init__(config, cache)
        self._config = config

    def manifest(self) -> Manifest:
        config = self._config
        return draw_splits(self.kinds, config.train_tasks, config.eval_tasks, config.seed)

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """`bfcl/base` and so on: a set's entries, in its order, of scenarios that no training task is of."""
        config = self._config

        def subset(kind: str) -> tuple[TaskSpec, ...]:
            held_out, _ = deal_scenarios(self.kinds, config.eval_tasks, config.seed)
            return subset_of(kind, held_out)

        return {**super().panels(), **{f"{self.name}/{kind}": partial(subset, kind) for kind in KINDS}}

    def preload(self) -> None:
        for name in {name for entry in entries().values() for name in entry.classes}:
            backend(name)

    def make(self) -> BfclEnv:
        return BfclEnv(self._config.max_turns)


def _find(task: TaskSpec) -> Entry:
    entry = entries().get(task.id)
    if entry is None or entry.digest != task.data.get("digest"):
        raise EnvError(f"the installed bfcl-eval has no such task as {task.id} {task.data}")
    return entry


def _message(entry: Entry, turn: int) -> str:
    """The user's message of a turn, followed by the schemas of tools that it reveals."""
    schemas = [json.dumps(schema) for schema in entry.revealed.get(turn, ())]
    return "\n".join([entry.messages[turn] or MORE_TOOLS, *schemas])
