"""BFCL's verdict on an episode, turn after turn, by `bfcl-eval`'s own checks on instances we hold.

    a turn's steps ──► the solution's calls on its own instances ──► state_checker, response_checker
                                                                 └─► multi_turn_irrelevance_checker

After every turn all public attributes of all instances have to equal the solution's, and the solution's
results have to be among the results so far, in any order. No call may be made in a turn that the solution
leaves empty. Upstream's `multi_turn_checker` does the same after the episode, on instances among its module's
globals.
"""

from __future__ import annotations

from typing import Any

from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
    multi_turn_irrelevance_checker,
    response_checker,
    state_checker,
)

from hindsight.envs.bfcl.backends import Backends, value_differences
from hindsight.envs.bfcl.data import Entry
from hindsight.envs.tool_calls import Call

LONGEST = 300  # characters of one value in an explanation
MOST = 20  # differences in one


class Referee:
    """Follows one episode. `errors` says what was wrong, upstream's first error first; empty is valid."""

    def __init__(self, entry: Entry) -> None:
        self._gold = entry.gold
        self._solution = Backends(entry)
        self._steps: list[list[tuple[Call, ...]]] = []
        self._results: list[str] = []
        self._mismatch: dict[str, Any] | None = None
        self._irrelevant: dict[str, Any] | None = None
        self._forced: dict[str, Any] | None = None

    @property
    def errors(self) -> list[dict[str, Any]]:
        """JSON-like: "turn" (counted from 0), "error_type", "error_message" and details of each."""
        return [error for error in (self._forced, self._mismatch, self._irrelevant) if error]

    def close(self, steps: list[tuple[Call, ...]], results: list[str], agent: Backends) -> None:
        """Judge a turn: its calls, step by step, their results, and the instances they were made on."""
        turn = len(self._steps)
        self._steps.append(steps)
        self._results += results
        self._irrelevant = self._irrelevant or self._check_irrelevance(turn)
        if self._mismatch is None:
            self._mismatch = self._check(turn, agent)

    def force(self, why: str) -> None:
        """The episode ended before the conversation did: invalid, whatever it achieved."""
        self._forced = _error(len(self._steps), "force_terminated", why)

    def _check(self, turn: int, agent: Backends) -> dict[str, Any] | None:
        """The turn's first error, in upstream's order."""
        if not self._gold[turn]:
            return None
        expected = [self._solution.call(call) for call in self._gold[turn]]
        if not self._steps[turn]:
            why = "The agent called no tool in a turn that needs calls."
            return _error(turn, "empty_turn_model_response", why, missing_items=_cut(expected))
        state = state_checker(agent.instances, self._solution.instances)
        if not state["valid"]:
            return _error(turn, state["error_type"], state["error_message"], differences=_differences(state))
        response = response_checker(self._results, expected, turn)
        if not response["valid"]:
            items = _cut(response["details"]["missing_items"])
            return _error(turn, response["error_type"], response["error_message"], missing_items=items)
        return None

    def _check_irrelevance(self, turn: int) -> dict[str, Any] | None:
        verdict = multi_turn_irrelevance_checker(self._steps, self._gold[: turn + 1])
        if verdict["valid"]:
            return None
        calls = [f"{call.name}({call.arguments})" for step in self._steps[turn] for call in step]
        return _error(turn, verdict["error_type"], verdict["error_message"], calls=_cut(calls))


def _error(turn: int, kind: str, why: str, **details: list[Any]) -> dict[str, Any]:
    kind = f"multi_turn:{kind.removeprefix('multi_turn:')}"
    return {"turn": turn, "error_type": kind, "error_message": why, **details}


def _differences(verdict: dict[str, Any]) -> list[dict[str, str]]:
    """Where the instance that upstream names differs, piece by piece rather than as two whole states."""
    attributes = verdict["details"]["differences"]
    found = {name: pair["model"] for name, pair in attributes.items()}
    expected = {name: pair["ground_truth"] for name, pair in attributes.items()}
    pieces = list(value_differences(found, expected))[:MOST]
    return [dict(zip(("path", "agent", "expected"), _cut(piece), strict=True)) for piece in pieces]


def _cut(texts: list[str] | tuple[str, ...]) -> list[str]:
    return [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in texts[:MOST]]
