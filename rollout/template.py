"""Split a chat template into pieces, so that a conversation grows by appending and is never re-rendered.

A template is a function from messages to text. Rendering it with placeholders shows the text that it puts
around messages. Rendering several rounds shows whether it changes earlier turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError as JinjaError

Message = dict[str, str]
RenderChat = Callable[[list[Message], bool], str]  # (messages, open the assistant's turn) -> text
FIX = "use prompt.preset=window, or another model"


class TemplateError(ValueError):
    """The model's chat template does not support the configured prompt. The message names the fix."""


@dataclass(frozen=True)
class ChatPieces:
    """The template's text around the messages of a conversation:

    ``opening user closing lead assistant ending bridge user closing lead assistant ending ...``
    """

    opening: str  # including the system message
    closing: str  # ends the user's message and opens the assistant's turn
    lead: str  # whitespace before the assistant's text, sampled by the model
    ending: str  # the token that ends the assistant's turn
    bridge: str  # from `ending` to the next user text


def split_template(
    render: RenderChat, tokens: Sequence[str], system: str | None, reply: Callable[[str], str] | None
) -> ChatPieces:
    """Split a chat template into its pieces.

    Args:
        render: the template.
        tokens: texts of the tokenizer's added tokens; one of them must end an assistant turn.
        system: the system message, or None. If the template supports none, it goes at the start of the first
            user message.
        reply: for a chat of several rounds, formats a placeholder like the agent's responses, which the
            template must not change. None for chats of one user message, which have no `bridge`.

    Raises:
        TemplateError: the template cannot be split, or rewrites earlier turns.
    """
    prefixes: list[tuple[list[Message], str]] = [([], "")]
    if system is not None:
        prefixes = [([{"role": "system", "content": system}], ""), ([], system + "\n\n")]
    problems = []
    for messages, preamble in prefixes:
        try:
            return _split(render, tokens, messages, preamble, reply)
        except (TemplateError, JinjaError) as error:
            problems.append(str(error))
    raise TemplateError("; ".join(dict.fromkeys(problems)))


def teaches_calls(render: Callable[[list[Message], list[dict[str, Any]]], str]) -> bool:
    """Return whether a template shows tools and their results in the format of `envs.tool_calls`.

    Args:
        render: (messages, tools) -> text.
    """
    tool = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {}}}
    asked: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        shown = render([*asked, {"role": "tool", "content": "c"}], [tool])
        wrapped = render([*asked, {"role": "user", "content": tool_result("c")}], [tool])
    except (JinjaError, TypeError):  # no tool role, or it cannot format a schema
        return False
    return shown == wrapped and "probe" in shown and "<tool_call>" in shown


def between_users(render: RenderChat) -> str:
    """Return the template's text between two consecutive user messages.

    Raises:
        TemplateError: the template does not allow them.
    """
    marks = ("mark0here", "mark1here")
    try:
        shown = render([{"role": "user", "content": mark} for mark in marks], True)
    except JinjaError as error:
        raise TemplateError(
            f"the chat template rejects two user messages in a row ({error}): use feedback.placement=section"
        ) from error
    return _around(_around(shown, marks[0])[1], marks[1])[0]


def tool_result(text: str) -> str:
    """Format a tool's result as a user message, the way these templates do."""
    return f"<tool_response>\n{text}\n</tool_response>"


def _split(
    render: RenderChat,
    tokens: Sequence[str],
    messages: list[Message],
    preamble: str,
    reply: Callable[[str], str] | None,
) -> ChatPieces:
    marks = [f"mark{index}here" for index in range(5)]
    chat = [*messages, {"role": "user", "content": preamble + marks[0]}]
    answers = [reply(mark) if reply else mark for mark in marks[1::2]]
    for answer, mark in zip(answers, marks[2::2], strict=True):
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": mark}]
    rounds = [chat[: len(messages) + size] for size in (1, 2, 3, 5)]

    opening, closing = _around(render(rounds[0], True), marks[0])
    if any(message["content"] not in opening for message in messages):
        raise TemplateError(f"the chat template drops the system message: {FIX}")
    answered = render(rounds[1], False)
    before, behind = _around(answered, answers[0])
    found = [(behind.find(token), -len(token), token) for token in tokens if token in behind]
    if not found or behind[: min(found)[0]].strip():
        raise TemplateError(
            "the chat template ends the assistant's turn with no token of its own, so the model cannot end "
            "a response: use another model"
        )
    ending = min(found)[2]
    gap = before.removeprefix(opening + marks[0] + closing)
    if gap.strip() and render(rounds[0], False) == render(rounds[0], True):
        raise TemplateError(
            "the chat template has no generation prompt: add_generation_prompt changes nothing, so the model "
            "would have to open its turn itself. Use another model, or change chat_template.jinja"
        )
    lead = gap if not gap.strip() else ""
    if reply is None:
        return ChatPieces(opening, closing, lead, ending, bridge="")

    between = render(rounds[2], True).partition(answers[0])[2].partition(marks[2])[0]
    skipped, _, bridge = between.partition(ending)
    turns = [closing + lead + answer + skipped + ending + bridge for answer in answers]
    expected = opening + marks[0] + turns[0] + marks[2] + turns[1] + marks[4] + closing
    if render(rounds[3], True) != expected:
        raise TemplateError(
            f"the chat template rewrites earlier turns, so a growing chat has no stable prefix: {FIX}"
        )
    return ChatPieces(opening, closing, lead, ending, bridge)


def _around(text: str, mark: str) -> tuple[str, str]:
    if text.count(mark) != 1:
        raise TemplateError(f"the chat template does not show each message once and unchanged: {FIX}")
    before, _, behind = text.partition(mark)
    return before, behind
