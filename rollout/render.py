"""Render prompts as token ids, for either prompt preset.

history: a system message with the rules, then one growing chat. Each turn only appends ids, so every context
starts with all ids of the previous one. window: one user message per turn with the rules, the first
observation, the latest (observation, action) pairs and the current observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hindsight.configs.schema import Config, Prompt
from hindsight.envs.base import ActionFormat, Observation
from hindsight.envs.registry import find_family
from hindsight.rollout.action_format import FORMS, describe_tools, function_schema
from hindsight.rollout.template import (
    ChatPieces,
    Message,
    TemplateError,
    between_users,
    split_template,
    teaches_calls,
    tool_result,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOTHING = Observation("")
LISTED = "Pick the action from the listed ones and copy it exactly."


class Renderer:
    """Renders prompts and responses as ids, for one model and one prompt configuration.

    Attributes:
        context: maximum tokens in one sequence.
        close_ids: (c,) int32, the tokens that end a user message and open the assistant's turn. Every context
            from this class ends with exactly these.
        end_id: the token that ends the assistant's turn.
        form: the agent's answer format.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        context: int,
        action_format: ActionFormat = "tags",
        room: int = 0,
    ) -> None:
        """Split the model's chat template into its pieces.

        Args:
            context: maximum tokens in one sequence.
            action_format: a key of `rollout.action_format.FORMS`.
            room: tokens to leave for the answer with the window preset, by leaving out past turns if needed.

        Raises:
            TemplateError: the tokenizer has no chat template, or one that does not support the preset.
        """
        if not tokenizer.chat_template:
            raise TemplateError(
                f"{tokenizer.name_or_path} has no chat template: set model.path to an instruction-tuned "
                "model, or add a chat_template.jinja to its folder"
            )
        self.context = context
        self.room = room
        self.prompt = prompt
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self.form = FORMS[action_format]
        self._marks = sorted(special | {token.content for token in added})
        self._frames: dict[str, ChatPieces] = {}
        self._teaches_calls = teaches_calls(lambda messages, tools: self._render_chat(messages, True, tools))
        self._pieces = self._frame(NOTHING)  # only the opening differs between episodes
        self.end_id = int(tokenizer.get_vocab()[self._pieces.ending])
        self.close_ids = self._continue(self._pieces.closing)
        if self._encode(self._pieces.ending + "a")[0] != self.end_id:
            raise TemplateError(
                f"end of turn {self._pieces.ending!r} is not a single token: use another model"
            )

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token."""
        return dict(self._tokenizer.get_vocab())

    def start(self, observation: Observation) -> np.ndarray:
        """Return the first context of a growing chat, (n,) int32."""
        return self._message(self._encode(self._frame(observation).opening + self.show(observation)))

    def follow(self, last_sampled: np.ndarray, observation: Observation) -> np.ndarray:
        """Return the ids to append after a turn's sampled ids for the next context, (n,) int32.

        They start with the end-of-turn token if the model did not sample it (token limit reached).
        """
        ended = len(last_sampled) > 0 and last_sampled[-1] == self.end_id
        # Encoded with the ending, then cut off: a tokenizer may treat the start of a text differently.
        ids = self._encode(self._pieces.ending + self._pieces.bridge + self.show(observation))
        return self._message(ids[1:] if ended else ids)

    def window(
        self,
        first: Observation,
        past: Sequence[tuple[Observation, str | None]],
        observation: Observation,
        step: int,
    ) -> np.ndarray:
        """Return the full context of one turn, (n,) int32, without past turns if they leave too little room.

        Args:
            first: the first observation of the episode, which states the task.
            past: (observation, action) of all earlier turns in order; the action is None if malformed.
            observation: the current observation.
            step: number of the current turn, from 1.
        """
        whole = self._window(first, past[max(0, len(past) - self.prompt.window) :], observation, step)
        if len(whole) + self.room > self.context:
            return self._window(first, (), observation, step)
        return whole

    def _window(
        self,
        first: Observation,
        shown: Sequence[tuple[Observation, str | None]],
        observation: Observation,
        step: int,
    ) -> np.ndarray:
        parts = [first.rules, self._tools(first), first.text.strip()]
        if step > 1:
            lines = [f"Steps taken so far: {step - 1}"]
            for number, (seen, action) in enumerate(shown, start=step - len(shown)):
                before = "(the start, above)" if number == 1 else seen.text.strip()
                lines += [
                    f"Step {number} observation: {before}",
                    f"Step {number} action: {action or '(none)'}",
                ]
            parts += ["\n".join(lines), f"Step {step}, now: {observation.text.strip()}"]
        parts += [self._list_actions(observation), self._request()]
        text = self._plain("\n\n".join(part for part in parts if part))
        return self._message(self._encode(self._frame(first).opening + text))

    def respond(self, action: str, thought: str = "") -> np.ndarray:
        """Return a demonstrated (not sampled) response with its end-of-turn token, (n,) int32."""
        ids = self._continue(self._pieces.lead + self._reply(action, thought))
        return np.append(ids, np.int32(self.end_id))

    def encode(self, text: str) -> np.ndarray:
        """Encode text inside a message, (n,) int32. Special tokens in the text are broken up."""
        return self._continue(self._plain(text))

    def second_message(self) -> np.ndarray:
        """Return the ids between two consecutive user messages, (n,) int32.

        Raises:
            TemplateError: the template does not allow two user messages in a row.
        """
        return self._continue(
            between_users(lambda messages, open_turn: self._render_chat(messages, open_turn, []))
        )

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """Return the prompt of a chat that belongs to no episode, (n,) int32."""
        plain = [{**message, "content": self._plain(message["content"])} for message in messages]
        return self._encode(self._render_chat(plain, True, []))

    def decode(self, ids: np.ndarray) -> str:
        """Decode ids with special tokens and without cleanup, so that decoding a prefix gives a prefix."""
        text = self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes that a token adds to a text; several tokens may share a character."""
        before = self._encode("a")  # a tokenizer may strip the start of a text
        text = self.decode(np.append(before, token)).removeprefix(self.decode(before))
        if "\ufffd" not in text:
            return text.encode()
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", name):
            return bytes.fromhex(byte[1])
        written = {character: byte for byte, character in bytes_to_unicode().items()}
        return bytes(map(written.__getitem__, name)) if set(name) <= written.keys() else text.encode()

    def parse(self, response: str) -> str | None:
        """Return the action of a response, or None if it is malformed."""
        span = self.form.find(response)
        return None if span is None else response[span.start : span.end]

    def rules(self, first: Observation = NOTHING) -> str:
        """Return the system message of a growing chat that starts with this observation."""
        lists = self.prompt.list_actions and first.actions
        listed = LISTED if lists and self.form is FORMS["tags"] else ""
        parts = [first.rules, self._tools(first), listed, self._request()]
        return (" " if self.form is FORMS["tags"] else "\n\n").join(part for part in parts if part)

    def _frame(self, first: Observation) -> ChatPieces:
        """Return the template's pieces for an episode that starts with this observation."""
        native = [function_schema(tool) for tool in first.tools] if self._teaches_calls else []
        growing = self.prompt.preset == "history"
        rules = self.rules(first) if growing else None
        key = json.dumps([rules, native])
        if key not in self._frames:
            self._frames[key] = split_template(
                lambda messages, open_turn: self._render_chat(messages, open_turn, native),
                self._marks,
                rules,
                (lambda mark: self._reply(mark, mark)) if growing else None,
            )
        return self._frames[key]

    def _tools(self, first: Observation) -> str:
        return describe_tools(first.tools) if first.tools and not self._teaches_calls else ""

    def _request(self) -> str:
        return self.form.request_think if self.prompt.think else self.form.request

    def _reply(self, action: str, thought: str) -> str:
        return (f"<think>{thought}</think>" if self.prompt.think else "") + self.form.write(action)

    def show(self, observation: Observation) -> str:
        """Format an observation for a growing chat: its text and, if enabled, its goal and actions."""
        said = observation.text.strip()
        goal = observation.goal if self.prompt.remind and observation.goal not in said else ""
        shown = tool_result(said) if observation.role == "tool" else said
        lines = [shown, goal, self._list_actions(observation)]
        return self._plain("\n".join(line for line in lines if line))

    def _list_actions(self, observation: Observation) -> str:
        if not (self.prompt.list_actions and observation.actions):
            return ""
        return "Actions: " + ", ".join(observation.actions)

    def _plain(self, text: str) -> str:
        """Break up special tokens, so that text from an environment cannot end or open a turn."""
        return self._special.sub(lambda found: found[0][0] + " " + found[0][1:], text)

    def _message(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([ids, self.close_ids])

    def _render_chat(self, messages: list[Message], open_turn: bool, tools: Sequence[dict[Any, Any]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=open_turn
            )
        )

    def _encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer(text, add_special_tokens=False).input_ids, dtype=np.int32)

    def _continue(self, text: str) -> np.ndarray:
        """Encode text inside a sequence. Some tokenizers add a space before the first word of a text."""
        anchor = self._encode("a")
        ids = self._encode("a" + text)
        if not np.array_equal(ids[: len(anchor)], anchor):  # "a" merged with the text
            return self._encode(text)
        return ids[len(anchor) :]


def load_renderer(model: str, config: Config) -> Renderer:
    """Create the renderer for a model folder or hub name.

    Raises:
        TemplateError: see `Renderer`.
    """
    from transformers import AutoTokenizer

    return Renderer(
        AutoTokenizer.from_pretrained(model),
        config.prompt,
        config.model.max_length,
        find_family(config.env.name).action_format,
        config.rollout.max_tokens,
    )
