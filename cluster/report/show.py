"""A run as text: its stages, the episodes of one, or an episode with its tokens colored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hindsight.cluster.report.lines import Row
from hindsight.cluster.report.run_folder import RunFolder, RunFolderError, RunStage
from hindsight.cluster.report.text import one_line, visible

# The sizes from which a number is somewhat, clearly and very different from nothing, by what is shown.
SIZES = {
    "weight": (0.02, 0.08, 0.2),  # |log2| of the factor: with SERL's λ and ε it is at most 0.15
    "delta": (0.1, 0.5, 2.0),  # nats
    "advantage": (0.01, 0.5, 1.5),
    "logprob": (0.5, 2.0, 5.0),  # nats below certainty
}
MEANING = {
    "weight": "the teacher's factor on the advantage (1 changes nothing)",
    "delta": "how much likelier the teacher finds the token than the policy (nats)",
    "advantage": "the advantage before the teacher",
    "logprob": "the log-prob of the token when it was sampled (nats)",
}
STYLES = {
    3: "bold white on blue", 2: "bold blue", 1: "blue", 0: "",
    -1: "yellow", -2: "bold yellow", -3: "bold black on yellow",
}  # fmt: skip
TASK = 24  # columns of a task's name in a table of 80
PROMPT_LINES = 12  # of what the model saw in a turn, unless all is wanted


def stage_label(stage: RunStage) -> str:
    """What one types for a stage: "3", or "3-after-RL"."""
    return str(stage.step) if stage.training else re.sub(r"^eval-0*(\d+)", r"\1", stage.key)


def find_stage(run: RunFolder, what: str) -> tuple[RunStage, int | None]:
    """The stage, and the number of the episode if there is one, that "3/2", "after-RL" and the like name.

    Raises:
        RunFolderError: there is none, or several.
    """
    name, slash, number = what.partition("/")
    stages = run.steps()
    name = re.sub(r"^step[- ]?0*(?=\d)", "", name)
    found = [stage for stage in stages if name in (stage_label(stage), stage.key)]
    found = found or [stage for stage in stages if not stage.training and name and name in stage_label(stage)]
    if len(found) != 1 or (slash and not number.isdecimal()):
        there = ", ".join(map(stage_label, found or stages)) or "none yet"
        raise RunFolderError(
            f"{run.path}: {what!r} names {'several' if len(found) > 1 else 'no'} steps or evaluations with "
            f"episodes; there are: {there}. Write 3 for step 3, and 3/0 for its first episode"
        )
    return found[0], int(number) if slash else None


def stages(run: RunFolder) -> Table:
    """Every step and evaluation with episodes, in at most 80 columns."""
    rows = {row["step"]: row for row in run.metrics("train")}
    measured = {(row["step"], row.get("stage")): row for row in run.metrics("eval")}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{run.path}", title_justify="left")
    for name in ("show", "episodes", "success", "reward", "malformed", "samples"):
        table.add_column(name, justify="left" if name == "show" else "right", no_wrap=True)
    for stage in run.steps():
        kind, row = "rollout", rows.get(stage.step, {})
        if not stage.training:
            kind = f"eval/{stage.panel}" if stage.panel else "eval"
            when = stage.name.removeprefix("eval, ").removesuffix(f", {stage.panel}")
            row = measured.get((stage.step, when), {})
        figures = [(f"{kind}/episodes", ".0f"), (f"{kind}/success", ".2f"), ("rollout/reward", ".2f")]
        figures += [("rollout/malformed", ".0%"), ("learner/samples", ".0f")]
        table.add_row(stage_label(stage), *(_figure(row, *one) for one in figures))
    return table


def episodes(run: RunFolder, stage: RunStage) -> Table:
    """The episodes of a stage, in at most 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=stage.name, title_justify="left")
    for name in ("show", "success", "reward", "turns", "hints", "ended"):
        number = name in ("reward", "turns", "hints")
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    table.add_column("task", no_wrap=True)
    for index, one in enumerate(run.episodes(stage.key)):
        turns = one["turns"]
        hints = sum("hint" in turn for turn in turns)
        table.add_row(
            f"{stage_label(stage)}/{index}", "yes" if one["success"] else "no", f"{one['reward']:.2f}",
            str(len(turns)), str(hints), str(one["ended"]), one_line(str(one["task"]), TASK),
        )  # fmt: skip
    return table


def show_episode(
    run: RunFolder, stage: RunStage, number: int, by: str, full: bool = False, color: bool = True
) -> Iterator[Text]:
    """An episode, part by part.

    Args:
        by: what colors the tokens, a key of `MEANING`. full: shows all that the model saw.
        color: whether the terminal shows colors; otherwise brackets mark the tokens.

    Raises:
        RunFolderError: it has no such episode.
    """
    there = run.episodes(stage.key)
    if number >= len(there):
        raise RunFolderError(f"{stage.name} has {len(there)} episodes, numbered from 0: there is no {number}")
    one, tokens = there[number], run.tokens(stage.key).get(number, {})
    ending = "solved" if one["success"] else "not solved"
    yield Text(
        visible(
            f"{stage.name}, episode {number}: task {one['task']}, {ending}, reward {one['reward']:g}, "
            f"{len(one['turns'])} turns, ended: {one['ended']}"
        ),
        "bold",
    )
    if any(value is not None for row in tokens.values() for value in token_values(row, by)):
        yield legend(by, color)
    else:
        others = ", ".join(name for name in SIZES if name != by) if tokens else ""
        yield Text(f"no token has a {by}" + (f"; try --by with {others}" if others else ""), "dim")
    if one.get("preamble"):
        yield _marked("before", str(one["preamble"]), "dim", full)
    for index, turn in enumerate(one["turns"]):
        row = tokens.get(index)
        yield Text(_head(index, turn, row), "bold cyan")
        yield _marked("sees", str(row["prompt"] if row else turn["observation"]), "dim", full)
        for note in turn.get("notes", ()):
            yield _marked(str(note["kind"]), str(note["text"]), "magenta", full=True)
        if "hint" in turn:
            yield _marked("hint", str(turn["hint"]), "green", full=True)
        said = Text("says   ")
        said.append_text(paint(row, by, color) if row else Text(visible(turn["response"] or "")))
        yield said


def token_values(row: Row, by: str) -> list[float | None]:
    """The number of each token of a turn; None where there is none."""
    if by == "delta":
        pairs = zip(_column(row, "teacher_logprob"), _column(row, "rollout_logprob"), strict=True)
        return [None if None in (a, b) else a - b for a, b in pairs]
    return _column(row, "rollout_logprob" if by == "logprob" else by)


def level(value: float, by: str) -> int:
    """−3 (very low) to 3 (very high); 0 is nothing special."""
    if by == "weight":
        value = math.log2(value) if value > 0 else -math.inf
    size = sum(abs(value) >= limit for limit in SIZES[by])
    return size if value > 0 else -size


def paint(row: Row, by: str, color: bool) -> Text:
    """The tokens of a turn: colored, or in brackets where the number is clearly (+ -) or much (++ --) off.

    Tokens without a number are dim, or as they are.
    """
    painted = Text()
    for token, value in zip(row["tokens"], token_values(row, by), strict=True):
        text = visible(str(token))
        size = None if value is None else level(value, by)
        if color:
            painted.append(text, "dim" if size is None else STYLES[size])
        elif size is None or abs(size) < 2 or not text.strip():
            painted.append(text)
        else:
            sign = ("+" if size > 0 else "-") * (abs(size) - 1)
            body = text.strip()
            before, after = text.split(body, 1)
            painted.append(f"{before}[{sign}{body}]{after}")
    return painted


def legend(by: str, color: bool) -> Text:
    """What the colors, or brackets, mean."""
    _, clear, much = SIZES[by]
    made = Text().append(f"tokens by {MEANING[by]}: ", "dim")
    unit = "|log2|" if by == "weight" else "size"
    if not color:
        marks = "[+higher] [-lower]" if by != "logprob" else "[-unlikely]"
        return made.append(f"{marks} from {unit} {clear:g}, [++] [--] from {much:g}")
    for side, sign in (("higher", 1), ("lower", -1)) if by != "logprob" else (("unlikely", -1),):
        made.append(f"{side}, {unit} from ", "dim")
        for size, limit in enumerate(SIZES[by], start=1):
            made.append(f"{limit:g}", STYLES[sign * size]).append(" ")
    return made.append("(dim: none)", "dim")


def _head(index: int, turn: Row, row: Row | None) -> str:
    parts = [f"turn {index + 1}"]
    if not turn["valid"]:
        parts.append("malformed" if turn["action"] is None else "inadmissible")
    if turn.get("reward"):
        parts.append(f"reward {turn['reward']:g}")
    if row and (known := [value for value in _column(row, "advantage") if value is not None]):
        parts.append(f"mean advantage {sum(known) / len(known):+.3f}")
    if row and (shares := [value for value in _column(row, "share") if value is not None]):
        parts.append(f"{sum(shares):.1%} of the step's loss")
    return "── " + ", ".join(parts) + " ──"


def _marked(name: str, text: str, style: str, full: bool) -> Text:
    """A text with its name before it, shortened unless all is wanted."""
    lines = visible(text.strip()).split("\n")
    if not full and len(lines) > PROMPT_LINES:
        half = PROMPT_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines (--full shows them)", *lines[-half:]]
    return Text(f"{visible(name):<6} ").append("\n".join(lines), style)


def _column(row: Row, name: str) -> list[Any]:
    """A column of a turn's tokens; all None if it was not recorded."""
    return list(row.get(name) or [None] * len(row["tokens"]))


def _figure(row: Row, name: str, form: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:{form}}"
