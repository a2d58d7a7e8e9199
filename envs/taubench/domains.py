"""tau2's domains as episodes use them: loaded once, then copied; with tools that cannot hang or diverge.

    data in the package ──once per shard──► `domain`: policy, tools, tasks, splits; databases, pickled
                                               │
    tau2's registry ◄── "hindsight-<name>" ────┴─ `make_environment`: fresh, for an episode or a replay

The evaluator replays a conversation in fresh environments and compares every tool's answer. Two tools are
therefore replaced: `calculate` evaluates the agent's text and can take for ever, and a new bill of telecom is
numbered at random, so that its number would differ in the replay.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import operator
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

from hindsight.envs.taubench.upstream import (
    AGENT_INSTRUCTION,
    AIRLINE_DB_PATH,
    DB,
    RETAIL_DB_PATH,
    SYSTEM_PROMPT,
    TELECOM_DB_PATH,
    TELECOM_USER_DB_PATH,
    AirlineTools,
    Environment,
    FlightDB,
    RetailDB,
    RetailTools,
    Task,
    TelecomDB,
    TelecomTools,
    TelecomUserDB,
    airline,
    registry,
    retail,
    telecom,
)

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
CHARACTERS = frozenset("0123456789+-*/(). ")  # upstream's
LONGEST = 500  # characters of an expression: Python's parser and `_value` recurse
MOST_BITS = 4096  # of a power; a float, which the result has to become, holds 1024


def arithmetic(expression: str) -> str:
    """What tau2's `calculate` answers, without evaluating text as code and within bounded time.

    Raises:
        ValueError, ArithmeticError, SyntaxError, TypeError: there is no answer; the agent is told why.
    """
    if not set(expression) <= CHARACTERS:
        raise ValueError("Invalid characters in expression")
    if len(expression) > LONGEST:
        raise ValueError(f"Expression longer than {LONGEST} characters")
    return str(round(float(_value(ast.parse(expression.lstrip(" "), "<string>", "eval").body)), 2))


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            first, second = _value(left), _value(right)
            whole = isinstance(first, int) and isinstance(second, int)
            if isinstance(op, ast.Pow) and whole and first.bit_length() * second > MOST_BITS:
                raise OverflowError("Result too large")
            return OPERATORS[type(op)](first, second)
    raise ValueError("Invalid expression")


class Retail(RetailTools):
    """Upstream's, with `calculate` made safe."""

    @wraps(RetailTools.calculate, updated=())  # upstream's marks would change the order of the tools
    def calculate(self, expression: str) -> str:
        return arithmetic(expression)


class Airline(AirlineTools):
    """Upstream's, with `calculate` made safe."""

    @wraps(AirlineTools.calculate, updated=())
    def calculate(self, expression: str) -> str:
        return arithmetic(expression)


class Telecom(TelecomTools):
    """Upstream's, with a new bill's number made from the customer's and the count of bills."""

    def _apply_one_time_charge(self, customer_id: str, amount: float, description: str) -> None:
        bills = len(self.db.bills)
        super()._apply_one_time_charge(customer_id, amount, description)
        for bill in self.db.bills[bills:]:  # at most one, the customer's next
            bill.bill_id = f"B{hashlib.sha256(f'{customer_id} {bills}'.encode()).hexdigest()[:8]}"
            self.get_customer_by_id(customer_id).bill_ids[-1] = bill.bill_id


@dataclass(frozen=True)
class _Source:
    """Where a domain comes from."""

    construct: Callable[..., Environment]  # upstream's; takes the databases in their order
    databases: tuple[tuple[type[DB], Path], ...]
    tools: type[RetailTools | AirlineTools | TelecomTools]


SOURCES = {
    "retail": _Source(retail, ((RetailDB, RETAIL_DB_PATH),), Retail),
    "airline": _Source(airline, ((FlightDB, AIRLINE_DB_PATH),), Airline),
    "telecom": _Source(
        telecom, ((TelecomDB, TELECOM_DB_PATH), (TelecomUserDB, TELECOM_USER_DB_PATH)), Telecom
    ),
}
DOMAINS = tuple(SOURCES)


@dataclass(frozen=True)
class Domain:
    """What all episodes of a domain share."""

    rules: str  # tau2's agent instruction with the domain's policy
    tools: tuple[Mapping[str, Any], ...]  # schemas of the agent's tools
    tasks: Mapping[str, Task]  # by id, the 114, 50 or 114 of tau2's base set
    splits: Mapping[str, tuple[str, ...]]  # ids of "train" and "test", which share none


@cache
def domain(name: str) -> Domain:
    """The domain, loaded once per process."""
    world = make_environment(name)
    splits = registry.get_task_splits_loader(name)()
    return Domain(
        rules=SYSTEM_PROMPT.format(agent_instruction=AGENT_INSTRUCTION, domain_policy=world.get_policy()),
        tools=tuple(tool.openai_schema["function"] for tool in world.get_tools()),
        tasks={task.id: task for task in registry.get_tasks_loader(name)()},
        splits={split: tuple(splits[split]) for split in ("train", "test")},
    )


@cache
def _stored(name: str) -> bytes:
    """The domain's databases, pickled: forked processes share bytes, and loading is faster than copying."""
    return pickle.dumps([kind.load(path) for kind, path in SOURCES[name].databases])


def make_environment(name: str, solo_mode: bool = False) -> Environment:
    """A fresh environment of the domain; `solo_mode` is for upstream's signature and has to be False."""
    source, stored = SOURCES[name], _stored(name)
    gc.disable()  # it would search the growing copy again and again
    try:
        databases = pickle.loads(stored)
    finally:
        gc.enable()
    world = source.construct(*databases, solo_mode=solo_mode)
    world.tools = source.tools(world.tools.db)
    return world


def registered(name: str) -> str:
    """The name by which tau2's registry, and so its evaluator, knows our environments of the domain."""
    return f"hindsight-{name}"


for _name in DOMAINS:
    registry.register_domain(partial(make_environment, _name), registered(_name))
