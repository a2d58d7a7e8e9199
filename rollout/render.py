"""Text to token ids: what the agent is told, by either prompt preset.

history: a system message with the rules, then one growing chat: each turn only adds ids, so every context
starts with all ids of the one before it. window: one user message a turn that holds the rules, the start of
the episode, the latest (observation, action) pairs and the current observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hindsight.configs.schema import Config, Prompt
from hindsight.envs.base import Observation
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
    """Prompts and responses as ids for one model and one prompt configuration.

    Attributes:
        context: most tokens in one sequence.
        close_ids: (c,) int32, the tokens that end a user message and open the assistant's turn; every context
            that this class makes ends with exactly these.
        end_id: the token that ends the assistant's turn.
        form: how the agent answers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        context: int,
        action_format: str = "tags",
        room: int = 0,
    ) -> None:
        """Takes the model's chat template apart.

        Args:
            context: most tokens in one sequence.
            room: tokens of it that a prompt of the window preset leaves to the answer, if leaving out past
                turns can do that.
            action_format: a name of `rollout.action_format.FORMS`.

        Raises:
            TemplateError: the tokenizer has no chat template, or one that cannot serve the preset.
        """
        if not tokenizer.chat_template:
            raise TemplateError(
                f"{tokenizer.name_or_path} has no chat template: choose an instruction-tuned model for "
                "model.path, or add a chat_template.jinja to its folder"
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
        self._pieces = self._frame(NOTHING)  # only the opening differs from episode to episode
        self.end_id = int(tokenizer.get_vocab()[self._pieces.ending])
        self.close_ids = self._continue(self._pieces.closing)
        if self._encode(self._pieces.ending + "a")[0] != self.end_id:
            raise TemplateError(
                f"{self._pieces.ending!r}, which ends a turn, is not one token: use another model"
            )

    def start(self, observation: Observation) -> np.ndarray:
        """The first context of a growing chat, (n,) int32."""
        return self._message(self._encode(self._frame(observation).opening + self.show(observation)))

    def follow(self, last_sampled: np.ndarray, observation: Observation) -> np.ndarray:
        """What to append behind the sampled ids of a turn to make the next context, (n,) int32.

        The end of the assistant's turn is added where the model did not sample it (cut at its token limit).
        """
        ended = len(last_sampled) > 0 and last_sampled[-1] == self.end_id
        # Encoded behind the ending, then cut off: a tokenizer may treat the front of a text differently.
        ids = self._encode(self._pieces.ending + self._pieces.bridge + self.show(observation))
        return self._message(ids[1:] if ended else ids)

    def window(
        self,
        first: Observation,
        past: Sequence[tuple[Observation, str | None]],
        observation: Observation,
        step: int,
    ) -> np.ndarray:
        """The whole context of one turn, (n,) int32; without past turns where they leave no room to answer.

        Args:
            first: the observation that opened the episode, which names the task.
            past: (observation, action) of every earlier turn in order; None for an action that did not parse.
            observation: the current one.
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
        """A demonstrated response with its end-of-turn token, (n,) int32; not for sampled ones."""
        ids = self._continue(self._pieces.lead + self._reply(action, thought))
        return np.append(ids, np.int32(self.end_id))

    def encode(self, text: str) -> np.ndarray:
        """Text that goes inside a message, (n,) int32; it cannot hold a token that ends a turn."""
        return self._continue(self._plain(text))

    def second_message(self) -> np.ndarray:
        """What ends a user message and opens another one behind it, (n,) int32.

        Raises:
            TemplateError: the template takes no two user messages in a row.
        """
        return self._continue(
            between_users(lambda messages, open_turn: self._render_chat(messages, open_turn, []))
        )

    def chat(self, messages: Sequence[Message]) -> np.ndarray:
        """Messages of a chat apart from any episode, which the assistant is to answer, (n,) int32."""
        plain = [{**message, "content": self._plain(message["content"])} for message in messages]
        return self._encode(self._render_chat(plain, True, []))

    def decode(self, ids: np.ndarray) -> str:
        """Text of ids, special tokens shown, nothing tidied: decoding a prefix gives a prefix."""
        text = self._tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def parse(self, response: str) -> str | None:
        """The action of a response; None where it does not hold exactly one."""
        span = self.form.find(response)
        return None if span is None else response[span.start : span.end]

    def rules(self, first: Observation = NOTHING) -> str:
        """The system message of a growing chat that begins with this observation."""
        listed = LISTED if self.prompt.list_actions and self.form is FORMS["tags"] else ""
        parts = [first.rules, self._tools(first), listed, self._request()]
        return (" " if self.form is FORMS["tags"] else "\n\n").join(part for part in parts if part)

    def _frame(self, first: Observation) -> ChatPieces:
        """What the template puts around an episode that begins with this observation."""
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
        """An observation as a growing chat shows it: its text and, where asked for, its goal and actions."""
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
        """Break up special tokens, so that no text of an environment can end a turn or open one."""
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
        """Ids of text inside a sequence: some tokenizers put a space before the first word they get."""
        anchor = self._encode("a")
        ids = self._encode("a" + text)
        if not np.array_equal(ids[: len(anchor)], anchor):  # the text starts inside a word
            return self._encode(text)
        return ids[len(anchor) :]


def load_renderer(model: str, config: Config) -> Renderer:
    """The renderer for a model folder or hub name.

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
