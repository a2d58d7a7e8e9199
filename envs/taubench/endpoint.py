"""An OpenAI-compatible endpoint that plays the customer: a service, or an engine of the run itself."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from hindsight.envs.base import EnvError
from hindsight.envs.runtime.bounded import bound
from hindsight.envs.taubench.settings import User
from hindsight.envs.taubench.upstream import (
    AssistantMessage,
    Message,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from hindsight.envs.tool_calls import read_json

PAUSE = 0.5  # seconds before the second try, doubled for each further one


class Unusable(ValueError):
    """The endpoint answered, but with nothing that a customer could have said."""


class UserEndpoint:
    """A client with a deadline and a number of tries. What it cannot get is the infrastructure's failure."""

    def __init__(self, user: User) -> None:
        """
        Raises:
            EnvError: a run's own model is asked for outside of one; inside, it is an endpoint like others.
        """
        if user.source == "engine":
            raise EnvError(
                "env.user.source=engine is served by training and evaluation runs alone: here choose "
                "scripted, or endpoint with env.user.url"
            )
        self._user = user
        self._model = user.model
        self._key = os.environ.get(user.api_key_env)
        self._client = openai.OpenAI(
            base_url=user.url,
            api_key=self._key or "none",  # engines of one's own ask for none
            timeout=user.timeout,
            max_retries=0,  # tries are counted here
            http_client=openai.DefaultHttpxClient(event_hooks={"response": [bound]}),
        )

    def say(self, messages: list[Message], tools: list[Tool]) -> UserMessage:
        """The customer's next message.

        Raises:
            EnvError: no try led to one.
        """
        request: dict[str, Any] = {"messages": [_outgoing(message) for message in messages]}
        if tools:
            request["tools"] = [tool.openai_schema for tool in tools]
        tries = self._user.retries + 1
        for number in range(tries):
            if number:
                time.sleep(PAUSE * 2 ** (number - 1))
            try:
                return _incoming(self._complete(request))
            except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
                # The last two because the client does not check the shape of what it receives.
                failure = f"{type(error).__name__}: {error}"
        if self._key:
            failure = failure.replace(self._key, "…")  # some services repeat it
        raise EnvError(f"the simulated user did not answer in {tries} tries; the last: {failure[:500]}")

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _complete(self, request: dict[str, Any]) -> Any:
        if not self._model:
            served = self._client.models.list().data
            if not served:
                raise Unusable("env.user.model is empty and the endpoint lists no model")
            self._model = served[0].id
        return self._client.chat.completions.create(
            model=self._model, temperature=self._user.temperature, **request
        )


def _outgoing(message: Message) -> dict[str, Any]:
    """A message in the endpoint's form."""
    sent = {"role": message.role, "content": message.content or ""}
    if isinstance(message, ToolMessage):
        sent["tool_call_id"] = message.id
    elif isinstance(message, AssistantMessage) and message.tool_calls:
        sent["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return sent


def _incoming(completion: Any) -> UserMessage:
    """What the customer said or called; of both, the calls, as tau2 allows one at a time.

    Raises:
        Unusable, ValueError: neither, or it cannot be read.
    """
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        raise Unusable("the answer is no chat completion")
    answer = completion.choices[0].message
    calls = [
        ToolCall(
            id=call.id,
            name=call.function.name,
            arguments=read_json(call.function.arguments),
            requestor="user",
        )
        for call in answer.tool_calls or ()
        if call.type == "function"
    ]
    if calls:
        return UserMessage(role="user", tool_calls=calls)
    words = (answer.content or "").rpartition("</think>")[2].strip()
    words = words.encode(errors="replace").decode()  # JSON can hold half a surrogate pair
    if not words:
        raise Unusable("the answer is empty")
    return UserMessage(role="user", content=words)
