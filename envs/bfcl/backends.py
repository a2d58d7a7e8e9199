"""One episode's own set of `bfcl-eval`'s backends, called directly.

    Call("cd", {"folder": "a"}) ──► GorillaFileSystem.cd(folder="a") ──► '{"current_working_directory": "a"}'

Upstream keeps its instances among a module's globals and evaluates the text of calls. Here an episode holds
its instances, and a call is a name looked up among their public methods and arguments that JSON gave. Results
and the texts of errors are what upstream's `execute_multi_turn_func_call` makes of the same call.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import random
from collections.abc import Iterator
from typing import Any

from bfcl_eval.constants.executable_backend_config import STATELESS_CLASSES

from hindsight.envs.bfcl.data import Entry, backend
from hindsight.envs.tool_calls import Call

UNSEEN = {"parent", "_last_modified"}  # the way back up in a tree; a clock that no tool shows
DIGITS = 4000  # of the longest number that is computed; Python prints no more than 4300
BITS = 13_000  # about as many
WRONG = (  # what a tool raises when it is given anything at all
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RecursionError,
    TypeError,
    ValueError,
)


class Backends:
    """The instances that an entry involves, at its initial state."""

    def __init__(self, entry: Entry) -> None:
        self.instances = {name: _load(name, entry) for name in entry.classes}
        self._tools = {
            name: method
            for instance in self.instances.values()
            for name, method in inspect.getmembers(instance, inspect.ismethod)
            if not name.startswith("_")
        }

    def call(self, call: Call) -> str:
        """The result as text; an error is a result, too."""
        if call.name not in self._tools:
            return f"Error during execution: name '{call.name}' is not defined"
        if _immense(call):
            return f"Error during execution: numbers of more than {DIGITS} digits are not computed"
        try:
            # Copied, for a tool may keep and later change what it was given.
            return _text(self._tools[call.name](**copy.deepcopy(call.arguments)))
        except WRONG as error:
            return f"Error during execution: {error}"

    def digest(self, *more: int) -> str:
        """Content hash (16 hex digits) of every instance's state, hidden parts included, and of `more`."""
        state = hashlib.sha256(repr(more).encode())
        for place in walk(self.instances):
            state.update(repr(place).encode())
        return state.hexdigest()[:16]


def walk(value: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(path, text) of everything inside `value`, containers before their contents.

    No recursion: an agent can nest folders deeper than Python's stack, and put one into itself.
    """
    seen: dict[int, tuple[Any, ...]] = {}
    stack: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while stack:
        path, item = stack.pop()
        inside = _inside(item)
        if inside is None:
            yield path, repr(item)
        elif id(item) in seen:
            yield path, f"the same as {'/'.join(map(str, seen[id(item)]))}"
        else:
            seen[id(item)] = path
            yield path, f"a {type(item).__name__}"
            stack.extend(((*path, key), child) for key, child in reversed(inside))


def value_differences(found: Any, expected: Any) -> Iterator[tuple[str, str, str]]:
    """(path, what is there, what should be) wherever two values differ, "nothing" for what is missing."""
    ours, theirs = dict(walk(found)), dict(walk(expected))
    missing: set[tuple[Any, ...]] = set()
    for path in ours | theirs:
        one, other = ours.get(path, "nothing"), theirs.get(path, "nothing")
        if one != other and path[:-1] not in missing:
            yield "/".join(map(str, path)), one, other
        if one != other and (path not in ours or path not in theirs):
            missing.add(path)  # what it holds is missing with it


def _load(name: str, entry: Entry) -> Any:
    instance = backend(name)()
    if name not in STATELESS_CLASSES:
        config = copy.deepcopy(entry.config.get(name, {}))
        instance._load_scenario(config, long_context=entry.kind == "long_context")
    return copy.deepcopy(instance)  # long scenarios borrow constants of modules, which bookings would change


def _inside(item: Any) -> list[tuple[Any, Any]] | None:
    """What `item` holds, by key; None where it holds nothing."""
    if isinstance(item, dict):
        return list(item.items())
    if isinstance(item, list):
        return list(enumerate(item))
    if isinstance(item, set):
        return list(enumerate(sorted(item, key=repr)))
    if isinstance(item, random.Random):
        return [("state", item.getstate())]
    if hasattr(item, "__dict__"):
        return [(key, value) for key, value in vars(item).items() if key not in UNSEEN]
    return None


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except (TypeError, ValueError, RecursionError):
            return str(result)
    return str(result)


def _immense(call: Call) -> bool:
    """Whether arithmetic with these arguments could take minutes or fill the memory."""
    numbers = {key: value for key, value in call.arguments.items() if isinstance(value, int)}
    bits = [value.bit_length() for value in numbers.values()]
    if call.name == "power":
        bits.append(numbers.get("base", 0).bit_length() * numbers.get("exponent", 0))
    digits = [_size(call.arguments.get(key, 0)) for key in ("precision", "decimal_places")]
    return max(bits, default=0) > BITS or max(digits) > DIGITS


def _size(value: Any) -> float:
    """|value| as far as upstream would read it as a number, from text too."""
    try:
        return abs(float(value))
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        return math.inf
