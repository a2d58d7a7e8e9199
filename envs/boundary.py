"""Validates an environment's return values in its own process, before they reach the run. Pure.

`Checked(env, name).call(method, *args)` returns what the method returned, as plain Python values: NumPy's
scalars and strings are converted. An answer that breaks the contract of `envs.base` is a BadAnswer, which is
retried and counted like every failure of an environment, and never becomes a reward.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from traceback import TracebackException
from typing import Any, TypeVar, get_args

from hindsight.envs.base import (
    BadAnswer,
    Demonstration,
    DemoStep,
    MessageRole,
    Observation,
    StepResult,
    TextEnv,
    Verdict,
)
from hindsight.envs.tasks import TaskSpec
from hindsight.envs.tool_calls import DEPTH, depth

LONGEST = 1 << 20  # characters of a text, of all actions, of `info` and of `tools`; no context holds more
LONGEST_MESSAGE = 10_000  # characters of an exception's message
T = TypeVar("T")
Answer = TypeVar("Answer", Observation, StepResult, Verdict)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80


def bad(field: str, value: Any, expected: str) -> BadAnswer:
    """The error of a field: what came, and what is expected."""
    return BadAnswer(f"{field} = {_repr.repr(value)} ({type(value).__name__}); expected {expected}")


class Checked:
    """An environment instance whose answers are checked."""

    def __init__(self, env: TextEnv, name: str) -> None:
        """
        Args:
            name: of the environment, for messages.

        Raises:
            BadAnswer: `env` is no TextEnv.
        """
        self._env, self._name, self._task = env, name, ""
        if not isinstance(env, TextEnv):
            raise bad(f"environment {name}: the instance", env, "a TextEnv")

    def call(self, method: str, *args: Any) -> Any:
        """`env.method(*args)`.

        Raises:
            BadAnswer: what it returned is not what `TextEnv` says.
        """
        if args and isinstance(args[0], TaskSpec):
            self._task = args[0].id
        try:
            answer = getattr(self._env, method)(*args)
            return CHECKS[method](answer) if method in CHECKS else answer
        except BadAnswer as error:
            raise BadAnswer(f"environment {self._name}, task {self._task}: {error}") from error


def described(error: BaseException) -> str:
    """The message of an exception of any code: encodable, bounded in length, and never empty even if
    `str(error)` raises."""
    said = str(TracebackException(type(error), error, None))
    return said[:LONGEST_MESSAGE].encode(errors="backslashreplace").decode()


def _text(value: Any, field: str) -> str:
    """A text that can be encoded and that a context could hold."""
    if not isinstance(value, str):
        raise bad(field, value, "text")
    if len(value) > LONGEST:
        raise bad(field, value, f"at most {LONGEST} characters, not {len(value)}")
    value = str.__str__(value)  # NumPy's strings and enums
    if not value.isascii():  # known without looking at the characters
        try:
            value.encode()
        except UnicodeEncodeError as error:
            part = value[max(0, error.start - 20) : error.start + 20]
            raise bad(field, part, f"text without lone surrogates, as at {error.start}") from None
    return value


def _texts(value: Any, field: str) -> tuple[str, ...]:
    """A list or tuple of texts."""
    if not isinstance(value, list | tuple):
        raise bad(field, value, "a list or tuple of texts")
    if len(value) > LONGEST:
        raise bad(field, value, f"at most {LONGEST} texts, not {len(value)}")
    plain = value
    if not set(map(type, value)) <= {str}:
        plain = [_text(one, f"{field}[{number}]") for number, one in enumerate(value)]
    _text("".join(plain), f"{field}, joined,")  # one check is cheaper than one for each
    return tuple(plain)  # a tuple is not copied


def number(value: Any, field: str) -> float:
    """A finite number; True is 1."""
    if type(value) is not float:
        plain = _plain(value)
        if not isinstance(plain, Real):
            raise bad(field, value, "a number")
        try:
            value = float(plain)
        except OverflowError:
            value = math.inf
    if not math.isfinite(value):
        raise bad(field, value, "a finite number")
    return value


def _flag(value: Any, field: str) -> bool:
    """True or False, or 1 or 0."""
    if value is True or value is False:
        return bool(value)
    plain = _plain(value)
    if not isinstance(plain, Real) or plain not in (0, 1):
        raise bad(field, value, "True or False")
    return bool(plain)


def _data(value: Any, field: str, kind: type[T]) -> T:
    """JSON data, as a copy that holds nothing else; `kind` is the type of the whole, in JSON's terms."""
    if isinstance(value, kind) and not value:
        return value
    try:
        written = json.dumps(value, default=_json, ensure_ascii=False)
        if len(written) > LONGEST:
            raise bad(field, value, f"at most {LONGEST} characters of JSON, not {len(written)}")
        written.encode()
        found = json.loads(written)
        deep = depth(found) > DEPTH
    except BadAnswer:
        raise
    except (TypeError, ValueError) as error:  # RecursionError is neither
        raise bad(field, value, f"JSON data ({error})") from None
    except RecursionError:
        deep = True
    if deep:
        raise bad(field, value, f"lists and objects in one another {DEPTH} deep at most")
    if not isinstance(found, kind):
        raise bad(field, value, "an object" if kind is dict else "a list")
    return found


def _observation(value: Any, field: str = "the observation") -> Observation:
    """An Observation; a subclass stays what it is."""
    if not isinstance(value, Observation):
        raise bad(field, value, "an Observation")
    found: dict[str, Any] = {
        name: _text(getattr(value, name), f"{field}.{name}")
        for name in ("text", "state_key", "rules", "goal")
    }
    found["actions"] = _texts(value.actions, f"{field}.actions")
    if value.role not in get_args(MessageRole):
        raise bad(f"{field}.role", value.role, " or ".join(get_args(MessageRole)))
    found["role"] = _text(value.role, f"{field}.role")
    if value.tools or not isinstance(value.tools, tuple):
        tools = _data(value.tools, f"{field}.tools", list)
        if not all(isinstance(tool, dict) and isinstance(tool.get("name"), str) for tool in tools):
            raise bad(f"{field}.tools", value.tools, "schemas with a name each")
        found["tools"] = tuple(tools)
    return _with(value, found)


def _verdict(value: Any) -> Verdict | None:
    """A Verdict, or None."""
    if value is None:
        return None
    if not isinstance(value, Verdict):
        raise bad("the verdict", value, "a Verdict or None")
    return _with(value, _judged(value, "the verdict"))


def _result(value: Any, field: str = "the result") -> StepResult:
    """A StepResult."""
    if not isinstance(value, StepResult):
        raise bad(field, value, "a StepResult")
    found = _judged(value, field)
    found["observation"] = _observation(value.observation, f"{field}.observation")
    found["feedback"] = _text(value.feedback, f"{field}.feedback")
    found["terminated"] = _flag(value.terminated, f"{field}.terminated")
    found["truncated"] = _flag(value.truncated, f"{field}.truncated")
    return _with(value, found)


def _demonstration(value: Any) -> Demonstration:
    """A Demonstration of at least one step."""
    if not isinstance(value, Demonstration):
        raise bad("the demonstration", value, "a Demonstration")
    if not isinstance(value.task, TaskSpec):
        raise bad("the demonstration.task", value.task, "a TaskSpec")
    if not isinstance(value.steps, list | tuple) or not value.steps:
        raise bad("the demonstration.steps", value.steps, "a tuple of at least one DemoStep")
    steps = tuple(_demo_step(step, f"step {number}") for number, step in enumerate(value.steps))
    success = _flag(value.success, "the demonstration.success")
    return Demonstration(value.task, _observation(value.first, "the demonstration.first"), steps, success)


def _solution(value: Any) -> list[str] | None:
    """A list of actions, or None."""
    return None if value is None else list(_texts(value, "the reference solution"))


CHECKS: dict[str, Callable[[Any], Any]] = {
    "reset": _observation,
    "step": _result,
    "finish": _verdict,
    "demonstrate": _demonstration,
    "reference": _solution,
}


def _demo_step(value: Any, field: str) -> DemoStep:
    if not isinstance(value, DemoStep):
        raise bad(field, value, "a DemoStep")
    return DemoStep(
        _observation(value.observation, f"{field}.observation"),
        _text(value.action, f"{field}.action"),
        _text(value.expert, f"{field}.expert"),
        _result(value.result, f"{field}.result"),
    )


def _judged(value: StepResult | Verdict, field: str) -> dict[str, Any]:
    """The checked fields that results and verdicts share."""
    return {
        "reward": number(value.reward, f"{field}.reward"),
        "success": _flag(value.success, f"{field}.success"),
        "info": _data(value.info, f"{field}.info", dict),
    }


def _with(value: Answer, found: Mapping[str, Any]) -> Answer:
    """`value` with the checked fields: itself if nothing had to be converted."""
    changed = {name: one for name, one in found.items() if one is not getattr(value, name)}
    return replace(value, **changed) if changed else value


def _plain(value: Any) -> Any:
    """The Python value of a scalar of NumPy or of another array library; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _json(value: Any) -> Any:
    """What JSON writes for a value that it does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    plain = _plain(value)
    if plain is value:
        raise TypeError(f"{type(value).__name__} is not JSON")
    return plain
