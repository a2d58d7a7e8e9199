"""Who the agent talks to: a task's customer, following a script or played by a language model.

    Orchestrator ──agent's words, own tools' results──► customer ──► words, calls of its own tools, the end

In telecom the customer has tools, for what can be seen and done on the phone. Its calls are not shown to the
agent.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Protocol, TypeAlias

from hindsight.envs.taubench.upstream import (
    STOP,
    TRANSFER,
    AssistantMessage,
    Message,
    MultiToolMessage,
    Task,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
    UserSimulator,
    UserState,
)

Heard: TypeAlias = AssistantMessage | ToolMessage | MultiToolMessage  # what a customer answers
TRANSFERRED = "being transferred to a human agent"  # as the policies word it


class ScriptedUser(UserSimulator):
    """A customer without a language model, the same at every visit.

    It opens with the reason of its call and answers the agent's next message with everything else that its
    scenario says, word for word and so in the second person ("You are …"). From then on it agrees to whatever
    it is asked, and ends the conversation at a message without a question mark. At any time a transfer ends
    it too, and a message that names tools of the customer's, as in `toggle_data()` or
    `grant_app_permission(messaging, sms)`, is answered by using them and reporting the results.

    It cannot refuse, insist or choose, as many scenarios want: results with it show whether an agent learns,
    and cannot be compared with published ones.
    """

    def __init__(self, task: Task, tools: list[Tool] | None) -> None:
        scenario = task.user_scenario.instructions
        super().__init__(tools=tools, instructions=str(scenario))
        about = (scenario.known_info, scenario.unknown_info, scenario.task_instructions)
        self._lines = deque([scenario.reason_for_call, "\n".join(filter(None, about))])
        self._fields = {tool.name: tuple(tool.params.model_fields) for tool in tools or ()}
        self._calls: list[ToolCall] = []  # those of its last message

    def generate_next_message(self, message: Heard, state: UserState) -> tuple[UserMessage, UserState]:
        if isinstance(message, AssistantMessage):
            self._calls = self._named(message.content)
            if self._calls:
                return UserMessage(role="user", tool_calls=self._calls), state
            return UserMessage(role="user", content=self._answer(message.content)), state
        told = zip(self._calls, results(message), strict=True)
        text = "\n".join(f"{call.name}: {result.content}" for call, result in told)
        return UserMessage(role="user", content=text), state

    def _answer(self, words: str) -> str:
        if TRANSFERRED in words.lower():
            return TRANSFER
        if self._lines:
            return self._lines.popleft()
        return "Yes, please." if "?" in words else STOP

    def _named(self, words: str) -> list[ToolCall]:
        """The calls of the customer's tools that the words hold, each once."""
        if not self._fields:
            return []
        names = "|".join(map(re.escape, self._fields))
        found = dict.fromkeys(re.findall(rf"\b({names})\b(?:\(([^()]*)\))?", words))
        return [
            ToolCall(id=f"user_{number}", name=name, arguments=self._arguments(name, given), requestor="user")
            for number, (name, given) in enumerate(found)
        ]

    def _arguments(self, name: str, given: str) -> dict[str, str]:
        """`storage, app_name="messaging"` as arguments; those without a name are the tool's, in order."""
        parts = [part.rpartition("=") for part in given.split(",") if part.strip()]
        fields = self._fields[name]
        return {
            key.strip() or (fields[number] if number < len(fields) else str(number)): value.strip(" \n`'\"")
            for number, (key, _, value) in enumerate(parts)
        }


class Speaker(Protocol):
    """A language model that speaks for a customer."""

    def say(self, messages: list[Message], tools: list[Tool]) -> UserMessage:
        """The customer's next message.

        Args:
            messages: the conversation as the customer sees it: its own messages are the assistant's.
            tools: those of the customer.

        Raises:
            EnvError: it could not be had.
        """

    def close(self) -> None:
        """Release what the speaker holds."""


class SimulatedUser(UserSimulator):
    """tau2's simulated user, its prompt and its history, over a client of ours."""

    def __init__(self, task: Task, tools: list[Tool] | None, speaker: Speaker) -> None:
        super().__init__(tools=tools, instructions=str(task.user_scenario))
        self._speaker = speaker

    def generate_next_message(self, message: Heard, state: UserState) -> tuple[UserMessage, UserState]:
        state.messages.extend(results(message) if not isinstance(message, AssistantMessage) else [message])
        answer = self._speaker.say([*state.system_messages, *state.flip_roles()], self.tools or [])
        state.messages.append(answer)
        return answer, state


def results(message: ToolMessage | MultiToolMessage) -> list[ToolMessage]:
    """The results of one or several calls."""
    return message.tool_messages if isinstance(message, MultiToolMessage) else [message]
