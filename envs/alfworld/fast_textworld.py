"""TextWorld's PDDL environment without its repeated work; what it says and does stays the same.

Upstream translates every game four times per episode (PDDL to the planner's SAS format), parses its grammars
again for every sentence and copies deeply. Here

- a game is translated once and kept in a folder that every process shares; the second translation, which only
  `policy_commands` and a missing walkthrough need, waits until it is asked for;
- grammars, queries and sentences are parsed once per process, and their symbols copied shallowly;
- sorted facts are kept until they change, and so is the text of a command whose facts never change.

Upstream keeps one planner per environment object and a parser per process: use it from one thread only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fast_downward
from fast_downward.translate.pddl.conditions import Atom as PddlAtom
from textworld.envs.pddl import logic as pddl_logic
from textworld.envs.pddl import textgen
from textworld.logic import Proposition, Rule, Signature, Type, Variable
from textworld.utils import check_flag

from hindsight.envs.base import EnvError
from hindsight.envs.runtime.files import atomic_write

FORMAT = 1  # of the translations on disk
SENTENCE = re.compile(
    r'(?<="rhs": ")Your task is to: [^"\\]*(?=")'
)  # the one part of a grammar that games differ in
_parse_symbols = textgen._parse_and_convert
_parse_query = Rule.parse_conjunctive_query
_parse_grammar = pddl_logic._parse_and_convert
_pddl2sas = fast_downward.pddl2sas
_folder: Path | None = None


def accelerate(folder: Path) -> None:
    """Make upstream's environment fast in this process; `folder` keeps the translations."""
    global _folder
    folder.mkdir(parents=True, exist_ok=True)
    _folder = folder
    textgen._parse_and_convert = lambda text, rule_name="symbols", **_: [
        _fresh(s) for s in _symbols(text, rule_name)
    ]
    textgen.copy_context = _copy_context
    textgen.check_flag = cache(check_flag)
    textgen.Symbol.copy = _copy_symbol
    textgen.EvalSymbol.derive = _evaluate
    Rule.parse_conjunctive_query = staticmethod(_query)
    fast_downward.pddl2sas = _keeping_arguments
    pddl_logic.GameLogic = CachedLogic
    pddl_logic.PddlState = CachedState


def _evaluate(symbol: Any, context: Mapping[str, Any] | None = None) -> list[Any]:
    """Upstream writes the variables into `locals()`, where `eval` does not find them from Python 3.13 on."""
    variables = (context or symbol.context)["variables"]
    return [textgen.TerminalSymbol(eval(symbol.expression, {**vars(textgen), **variables}))]


@dataclass(frozen=True)
class Translation:
    """What a state needs of a translated game."""

    sas: bytes
    facts: tuple[Proposition, ...]  # true at the start, in upstream's order, with its repetitions
    types: tuple[tuple[str, tuple[str, ...]], ...]  # name, supertypes
    objects: Mapping[str, str]  # name -> type
    actions: Mapping[str, SimpleNamespace]  # name -> .parameters with .name and .type_name
    fluents: frozenset[str]  # predicates that an action can change


def _keeping_arguments(
    domain: str, problem: str, verbose: bool = False, optimize: bool = False
) -> tuple[Any, str]:
    """Upstream's translator, without its writing over `sys.argv`."""
    arguments = sys.argv
    try:
        return _pddl2sas(domain, problem, verbose=verbose, optimize=optimize)
    finally:
        sys.argv = arguments


@lru_cache(maxsize=8)
def translation(domain: str, problem: str) -> Translation:
    """The game's translation, from the shared folder or made now; one process makes it while others wait.

    Raises:
        EnvError: the stored translation is damaged.
    """
    assert _folder is not None
    versions = f"{FORMAT} {version('fast-downward-textworld')} {version('textworld')}"
    key = hashlib.sha256("\0".join((versions, domain, problem)).encode()).hexdigest()
    shelf = _folder / key[:2]
    shelf.mkdir(exist_ok=True)
    path = shelf / f"{key}.json.z"
    if not path.exists():
        lock = os.open(shelf, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                record = zlib.compress(json.dumps(_translate(domain, problem)).encode(), 1)
                atomic_write(path, record)
        finally:
            os.close(lock)
    try:
        record = json.loads(zlib.decompress(path.read_bytes()))
    except (zlib.error, json.JSONDecodeError) as error:
        raise EnvError(f"the translation {path} is damaged ({error}): delete it") from error
    return Translation(
        sas=record["sas"].encode(),
        facts=tuple(_proposition(name, arguments, record["objects"]) for name, arguments in record["facts"]),
        types=tuple((name, tuple(parents)) for name, parents in record["types"]),
        objects=record["objects"],
        actions={
            name: SimpleNamespace(parameters=[SimpleNamespace(name=n, type_name=t) for n, t in parameters])
            for name, parameters in record["actions"].items()
        },
        fluents=frozenset(record["fluents"]),
    )


def _proposition(name: str, arguments: Iterable[str], types: Mapping[str, str]) -> Proposition:
    return Proposition(name, [Variable(argument, types[argument]) for argument in arguments])


def _translate(domain: str, problem: str) -> dict[str, Any]:
    """Translate a game into what `Translation` holds, as JSON."""
    task, sas = _keeping_arguments(domain, problem)
    facts = []
    for fact in task.init:
        if isinstance(fact, PddlAtom):
            if fact.predicate != "=":
                facts.append((fact.predicate, list(fact.args)))
        elif (
            fact.fluent.symbol != "total-cost" and not str(fact.expression.value).isdigit()
        ):  # not a distance
            facts.append((str(fact.expression.value), list(fact.fluent.args)))
    types: dict[str, list[str]] = {}
    for kind in task.types:  # the domain's own `object` repeats the built-in type: upstream keeps the first
        types.setdefault(kind.name, list(kind.supertype_names))
    changed = {effect.literal.predicate for action in task.actions for effect in action.effects}
    return {
        "sas": sas,
        "facts": facts,
        "types": list(types.items()),
        "objects": {o.name: o.type_name for o in task.objects},
        "actions": {a.name: [(p.name, p.type_name) for p in a.parameters] for a in task.actions},
        "fluents": sorted(changed | {axiom.name for axiom in task.axioms}),
    }


class CachedState(pddl_logic.PddlState):
    """Upstream's state, made from a stored translation, with its facts kept sorted."""

    def __init__(self, downward_lib: Any, pddl_problem: str, logic: CachedLogic) -> None:
        game = translation(logic.domain, pddl_problem)
        self._facts: defaultdict[Signature, set[Proposition]] = defaultdict(set)
        self._vars_by_name: dict[str, Variable] = {}
        self._vars_by_type: defaultdict[str, set[Variable]] = defaultdict(set)
        self._var_counts: Counter[str] = Counter()
        self._sorted: dict[Signature, list[Proposition]] = {}
        self._listed: list[Proposition] | None = None
        self._logic = logic
        self._actions = game.actions
        self._can_replan = False
        self.downward_lib = downward_lib
        self.pddl_problem = pddl_problem
        self.name2type = game.objects
        logic.learn(game)
        downward_lib.load_sas(game.sas)
        self.add_facts(game.facts)
        atoms = (pddl_logic.Atom * downward_lib.get_state_size())()
        downward_lib.get_state(atoms)
        self.add_facts(atom.get_fact(self.name2type) for atom in atoms if not atom.name.startswith("Negated"))

    @property
    def facts(self) -> list[Proposition]:
        if self._listed is None:
            self._listed = [fact for group in self._facts.values() for fact in group]
        return self._listed

    def facts_with_signature(self, sig: Signature) -> list[Proposition]:
        if sig not in self._sorted:
            self._sorted[sig] = sorted(self._facts.get(sig, ()))
        return self._sorted[sig]

    def add_fact(self, prop: Proposition) -> None:
        self._forget(prop)
        super().add_fact(prop)

    def remove_fact(self, prop: Proposition) -> None:
        self._forget(prop)
        super().remove_fact(prop)

    def _forget(self, prop: Proposition) -> None:
        self._sorted.pop(prop.signature, None)
        self._listed = None

    def replan(self, infos: Any) -> list[str]:
        """Upstream's, with the game's translation from the shared folder."""
        if not self._can_replan:
            _, sas = _keeping_arguments(self._logic.domain, self.pddl_problem, optimize=True)
            self.downward_lib.load_sas_replan(sas.encode())
            self._can_replan = True
        return super().replan(infos)


class CachedLogic(pddl_logic.GameLogic):
    """Upstream's logic of one loaded game; grammars that differ in the task alone are parsed once."""

    def __init__(self, domain: str, grammar: str) -> None:
        found = SENTENCE.findall(grammar)
        sentence = found[0] if len(found) == 1 else None
        self.domain = domain
        self.actions, shared = _grammar(SENTENCE.sub("", grammar) if sentence else grammar)
        self.grammar = CachedGrammar()
        self.grammar.update(shared)
        if sentence:
            task = textgen.ContextSensitiveGrammar.parse(json.dumps({"task": [{"rhs": sentence}]}))
            self.grammar._rules["task"] = task._rules["task"]
        self.types = pddl_logic.textworld.logic.TypeHierarchy()
        self._learned = False

    def learn(self, game: Translation) -> None:
        """Take over the types and the changeable predicates of the translated game."""
        if not self._learned:
            for name, parents in game.types:
                self.types.add(Type(name, parents))
            self.grammar.fluents = game.fluents
            self._learned = True


class CachedGrammar(textgen.ContextSensitiveGrammar):
    """Upstream's grammar that keeps the text of commands which no action can change."""

    def __init__(self) -> None:
        super().__init__()
        self.fluents: frozenset[str] = frozenset()
        self._constant: dict[str, bool] = {}
        self._texts: dict[tuple[Any, ...], str] = {}

    def replace(self, start: textgen.Symbol) -> list[textgen.Symbol]:
        """Upstream's, with each symbol's productions parsed once."""
        rules = self._rules.get(str(start))
        if not rules:
            raise textgen.CSGUnknownSymbolError(start)
        state, mapping = start.context["state"], start.context["mapping"]
        for rule in rules:
            if not rule.condition or any(
                True for _ in state.all_assignments(_query(rule.condition), mapping)
            ):
                symbols = [_fresh(symbol) for symbol in rule.rhs]
                for symbol in symbols:
                    symbol.context = _copy_context(start.context)
                return symbols
        raise IndexError(f"no rule of the grammar applies to {start}")

    def derive(self, start: str, context: Mapping[str, Any]) -> str:
        """Upstream's, with each sentence parsed once."""
        if start not in self._constant:
            self._constant[start] = all(self._fixed(s) for s in _symbols(start, "symbols"))
        if not self._constant[start]:
            return super().derive(start, context)
        key = (start, *context["mapping"].items())
        if key not in self._texts:
            self._texts[key] = super().derive(start, context)
        return self._texts[key]

    def _fixed(self, symbol: textgen.Symbol) -> bool:
        """Whether the symbol's text depends on its variables and on unchangeable facts alone."""
        if isinstance(symbol, textgen.ListSymbol):
            return self._fixed(symbol.symbol)
        if isinstance(symbol, textgen.ConditionalSymbol):
            asked = (
                {p.name.removeprefix("not_") for p in _query(symbol.given).preconditions}
                if symbol.given
                else set()
            )
            return self._fixed(symbol.expression) and not asked & self.fluents
        return isinstance(symbol, textgen.TerminalSymbol | textgen.EvalSymbol)


@lru_cache(maxsize=65536)
def _symbols(text: str, rule_name: str) -> list[textgen.Symbol]:
    return _parse_symbols(text, rule_name=rule_name)


@lru_cache(maxsize=4096)
def _query(expression: str) -> Rule:
    return _parse_query(expression)


@lru_cache(maxsize=16)
def _grammar(text: str) -> tuple[dict[str, Any], textgen.ContextSensitiveGrammar]:
    return _parse_grammar(text, rule_name="pddlStart")


def _fresh(symbol: textgen.Symbol) -> textgen.Symbol:
    """A copy that shares nothing an expansion writes to."""
    copy = object.__new__(type(symbol))
    copy.__dict__.update(symbol.__dict__, context={})
    if isinstance(copy, textgen.ListSymbol):
        copy.symbol = _fresh(copy.symbol)
    elif isinstance(copy, textgen.ConditionalSymbol):
        copy.expression = _fresh(copy.expression)
    return copy


def _copy_symbol(symbol: textgen.Symbol, context: Mapping[str, Any]) -> textgen.Symbol:
    copy = _fresh(symbol)
    copy.context = _copy_context(context)
    return copy


def _copy_context(context: Mapping[str, Any]) -> dict[str, Any]:
    """A context whose two mappings may be written to; states, facts and entities are shared."""
    return {**context, "variables": dict(context["variables"]), "mapping": dict(context["mapping"])}
