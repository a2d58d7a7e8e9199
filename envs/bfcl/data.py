"""BFCL v3 multi-turn as `bfcl-eval` ships it: 800 entries in four sets over the same 200 scenarios.

    data/BFCL_v4_multi_turn_<kind>.json ─┐            (the file names say v4; version 3 introduced the sets)
    data/possible_answer/…               ├─► Entry ──► splits: no scenario is in both
    data/multi_turn_func_doc/…          ─┘

`base` asks for everything plainly, `miss_func` withholds tools until a later turn, `miss_param` a detail of a
request, and `long_context` fills what the tools return with clutter.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from bfcl_eval.constants.executable_backend_config import (
    CLASS_FILE_PATH_MAPPING,
    MULTI_TURN_FUNC_DOC_FILE_MAPPING,
)

from hindsight.envs.base import DataMissing
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.envs.tool_calls import Call

KINDS = ("base", "miss_func", "miss_param", "long_context")
JSON_TYPES = {"dict": "object", "float": "number"}  # upstream's documents name Python's types


@dataclass(frozen=True)
class Entry:
    """One conversation: what the user asks, which tools there are, and the calls that answer it."""

    id: str  # "multi_turn_<kind>_<scenario>"
    kind: str
    scenario: int  # 0 … 199; entries of one scenario share most of their messages and solutions
    messages: tuple[str, ...]  # of the user, one per turn; "" at the turn that reveals withheld tools
    gold: tuple[tuple[Call, ...], ...]  # per turn; empty where the request cannot be met yet
    tools: tuple[Mapping[str, Any], ...]  # schemas offered from the start
    revealed: Mapping[int, tuple[Mapping[str, Any], ...]]  # turn → schemas withheld until then
    classes: tuple[str, ...]  # of upstream's backends
    config: Mapping[str, Any]  # class → its initial state
    digest: str  # content hash of all of it

    @property
    def task(self) -> TaskSpec:
        """The entry as a task, its split left open."""
        return TaskSpec(self.id, "bfcl", self.kind, "", {"digest": self.digest})


@cache
def entries() -> Mapping[str, Entry]:
    """All 800 by id, read once per process.

    Raises:
        DataMissing: the package lacks its data.
    """
    found = [
        _entry(kind, question, answer["ground_truth"])
        for kind in KINDS
        for question, answer in zip(
            _lines(f"BFCL_v4_multi_turn_{kind}.json"),
            _lines(f"possible_answer/BFCL_v4_multi_turn_{kind}.json"),
            strict=True,
        )
    ]
    return {entry.id: entry for entry in found}


def draw_splits(kinds: tuple[str, ...], train: int, evaluation: int, seed: int) -> Manifest:
    """Disjoint splits, for the benchmark has no split of its own.

    Scenarios are shuffled by the seed and dealt whole, so that no held-out conversation has a sibling among
    the training tasks: the evaluation split takes as few as hold its tasks (never all of them), training
    the others. Within a split the kinds take turns, and each scenario is drawn once before any repeats.
    """
    held_out, others = deal_scenarios(kinds, evaluation, seed)
    return Manifest(
        train=tuple(_tasks(others, kinds, "train"))[:train],
        evaluation=tuple(_tasks(held_out, kinds, "evaluation"))[:evaluation],
    )


def deal_scenarios(kinds: tuple[str, ...], evaluation: int, seed: int) -> tuple[list[int], list[int]]:
    """The scenarios that are held out, and those that training draws from."""
    scenarios = sorted({entry.scenario for entry in entries().values()})
    random.Random(f"bfcl {seed}").shuffle(scenarios)
    count = min(-(-evaluation // len(kinds)), len(scenarios) - 1)
    return scenarios[:count], scenarios[count:]


def subset_of(kind: str, scenarios: Collection[int]) -> tuple[TaskSpec, ...]:
    """The tasks of one set that are of these scenarios, in upstream's order."""
    found = (entry for entry in entries().values() if entry.kind == kind and entry.scenario in scenarios)
    return tuple(replace(entry.task, split="evaluation") for entry in found)


def _tasks(scenarios: list[int], kinds: tuple[str, ...], split: str) -> Iterator[TaskSpec]:
    for lap in range(len(kinds)):
        for place, scenario in enumerate(scenarios):
            kind = kinds[(place + lap) % len(kinds)]
            task = entries()[f"multi_turn_{kind}_{scenario}"].task
            yield TaskSpec(task.id, task.env, task.kind, split, task.data)


def backend(name: str) -> type:
    """Upstream's class of that name."""
    return getattr(import_module(CLASS_FILE_PATH_MAPPING[name]), name)


def _entry(kind: str, question: dict[str, Any], gold: list[list[str]]) -> Entry:
    classes = tuple(question["involved_classes"])
    documents = {document["name"]: document for name in classes for document in _documents(name)}
    withheld = question.get("missed_function", {})
    hidden = {
        *question.get("excluded_function", ()),
        *(name for names in withheld.values() for name in names),
    }
    content = json.dumps([question, gold, list(documents.values())], sort_keys=True)
    return Entry(
        id=question["id"],
        kind=kind,
        scenario=int(question["id"].rpartition("_")[2]),
        messages=tuple(turn[0]["content"] if turn else "" for turn in question["question"]),
        gold=tuple(tuple(_call(text, classes) for text in turn) for turn in gold),
        tools=tuple(document for name, document in documents.items() if name not in hidden),
        revealed={int(turn): tuple(documents[name] for name in names) for turn, names in withheld.items()},
        classes=classes,
        config=question["initial_config"],
        digest=hashlib.sha256(content.encode()).hexdigest()[:16],
    )


def _call(text: str, classes: tuple[str, ...]) -> Call:
    """A solution's call, `mv('a', destination='b')`, its arguments by name; literals only."""
    call = ast.parse(text.strip(), mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name), text
    arguments = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    if call.args:
        owner = next(backend(name) for name in classes if hasattr(backend(name), call.func.id))
        names = list(inspect.signature(getattr(owner, call.func.id)).parameters)[1:]  # the first is self
        arguments |= {name: ast.literal_eval(value) for name, value in zip(names, call.args, strict=False)}
    return Call(call.func.id, arguments)


@cache
def _documents(name: str) -> tuple[dict[str, Any], ...]:
    """The schemas of one backend's tools."""
    documents = _lines(f"multi_turn_func_doc/{MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]}")
    return tuple(
        {
            "name": document["name"],
            "description": document["description"],
            "parameters": _schema(document["parameters"]),
        }
        for document in documents
    )


def _schema(document: Any) -> Any:
    """`document` with JSON Schema's names of types."""
    if isinstance(document, list):
        return [_schema(item) for item in document]
    if not isinstance(document, dict):
        return document
    return {
        key: JSON_TYPES.get(value, value) if key == "type" and isinstance(value, str) else _schema(value)
        for key, value in document.items()
    }


def _lines(path: str) -> list[dict[str, Any]]:
    try:
        text = (files("bfcl_eval") / "data" / path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataMissing(f"bfcl-eval lacks its data ({error}): install its wheel again") from error
    return [json.loads(line) for line in text.splitlines()]
