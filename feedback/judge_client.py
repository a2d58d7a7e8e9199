"""Clients for the judge: an OpenAI-compatible endpoint or the run's own engines.

question ─► JudgeClient (cache, budget, concurrency limit) ─► JudgeEndpoint | EngineAsk ─► answer | JudgeError
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hindsight.configs.schema import Judge
from hindsight.envs.runtime.files import atomic_write
from hindsight.feedback.reading import Question
from hindsight.feedback.transcript import shorten_to_fit
from hindsight.rollout.episode import Generate, derive_seed
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import EngineError, Sampling

Schema = Mapping[str, Any]
RETRIES = 2  # after a failed attempt
LONGEST_PAUSE = 10.0  # seconds between two attempts
SMALLEST_ANSWER = 64  # tokens: one diagnosis or correction with its JSON
LONGEST_TEXT = 500  # characters of one text in an answer in JSON from the run's engines
SHARE = 3  # a question is shortened until its answer has room for its tokens or context / SHARE, if fewer


class JudgeError(RuntimeError):
    """The judge did not answer. This is an infrastructure failure, never a reward."""


class JudgeBudgetSpent(JudgeError):
    """The run has asked `judge.budget` questions."""


@dataclass(frozen=True)
class Answer:
    """An answer and its token counts (0 if the endpoint does not report usage or the answer was cached)."""

    text: str
    tokens_read: int = 0
    tokens_written: int = 0


class Ask(Protocol):
    """Answers a question according to the judge's settings."""

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        """Answer a question.

        Args:
            schema: JSON schema of the answer; None for plain text.

        Raises:
            JudgeError: no answer after all retries.
        """


class JudgeEndpoint:
    """Asks an OpenAI-compatible endpoint.

    The client retries status codes 408, 409, 429 and 5xx, connection errors and timeouts. It does not read an
    answer of more than `envs.runtime.bounded.LONGEST` bytes to its end.
    """

    def __init__(self, settings: Judge) -> None:
        """Create the client.

        Raises:
            JudgeError: the environment variable with the API key is not set.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        from hindsight.envs.runtime.bounded import bound_async

        self._settings = settings
        self._key = os.environ.get(settings.api_key_env, "")
        if not self._key:
            raise JudgeError(
                f"judge.api_key_env: environment variable {settings.api_key_env!r} is not set. Export it "
                "(any text works if the endpoint needs no key)"
            )
        self._client = AsyncOpenAI(
            base_url=settings.url,
            api_key=self._key,
            timeout=settings.timeout,
            max_retries=RETRIES,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [bound_async]}),
        )

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        from openai import OpenAIError
        from openai.types.chat import ChatCompletion, ChatCompletionMessage
        from openai.types.chat.chat_completion import Choice

        settings = self._settings
        extra: dict[str, Any] = {}
        if schema is not None:
            form = {"name": "answer", "schema": schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": form}
        longest = patience(settings)  # the client's own timeout restarts with each byte received
        try:
            async with asyncio.timeout(longest):
                completion = await self._client.chat.completions.create(
                    model=settings.model,
                    messages=[{"role": "user", "content": question.write(settings.characters)}],
                    max_tokens=_most_tokens(question, settings),
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    **extra,
                )
        except TimeoutError as error:
            late = f"{settings.url} did not answer within {longest:g} s: raise judge.timeout"
            raise JudgeError(late) from error
        except OpenAIError as error:
            said = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
            raise JudgeError(f"{settings.url}: {said.replace(self._key, '<key>')[:500]}") from None
        except (ValueError, RecursionError) as error:
            raise JudgeError(f"{settings.url} did not return valid JSON: {error}") from error
        match completion:  # the client does not validate responses
            case ChatCompletion(choices=[Choice(message=ChatCompletionMessage(content=str(text))), *_]):
                return Answer(text, *_usage(completion))
        raise JudgeError(f"{settings.url} did not return a chat completion with text: check judge.url")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class EngineAsk:
    """Asks the current policy on the run's engines, round-robin; a retry uses the next engine."""

    def __init__(self, renderer: Renderer, engines: Sequence[Generate], settings: Judge) -> None:
        self._renderer = renderer
        self._engines = engines
        self._settings = settings
        self._asked = count()

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        settings = self._settings
        ids, room = self._fit(question)
        sampling = Sampling(
            settings.temperature,
            room,
            seed=derive_seed(*ids.tolist()),
            top_p=settings.top_p,
            json_schema=None if schema is None else json.dumps(bounded(schema)),
        )
        first = next(self._asked)
        for retry in range(RETRIES + 1):
            engine = self._engines[(first + retry) % len(self._engines)]
            try:
                sampled = (await engine(ids, sampling)).ids
            except EngineError as error:
                failure = error
            else:
                ended = len(sampled) > 0 and sampled[-1] == self._renderer.end_id
                text = self._renderer.decode(sampled[:-1] if ended else sampled)
                return Answer(text, tokens_read=len(ids), tokens_written=len(sampled))
        raise JudgeError(f"no engine answered after {RETRIES + 1} attempts: {failure}") from failure

    def _fit(self, question: Question) -> tuple[np.ndarray, int]:
        """Return the question's ids, (n,) int32, shortened if needed, and the maximum tokens of its answer.

        Raises:
            JudgeError: the shortest question leaves fewer than SMALLEST_ANSWER tokens.
        """
        context, most = self._renderer.context, _most_tokens(question, self._settings)

        def write(characters: int) -> np.ndarray:
            return self._renderer.chat([{"role": "user", "content": question.write(characters)}])

        ids = shorten_to_fit(write, context - min(most, context // SHARE), self._settings.characters)
        room = min(most, context - len(ids))
        if room < min(most, SMALLEST_ANSWER):
            raise JudgeError(
                f"the shortest question has {len(ids)} tokens, which leaves no room for an answer in "
                f"model.max_length = {context}: raise it"
            )
        return ids, room

    async def close(self) -> None:
        """Do nothing: the run owns the engines."""


def bounded(schema: Any) -> Any:
    """A JSON schema in which every text has at most LONGEST_TEXT characters.

    Without this, a model that is far from writing JSON never ends its first text.
    """
    if isinstance(schema, list):
        return [bounded(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kinds = schema.get("type", ())
    free = "string" in ([kinds] if isinstance(kinds, str) else kinds) and "enum" not in schema
    limits: dict[str, Any] = {"maxLength": LONGEST_TEXT} if free else {}
    return limits | {name: bounded(value) for name, value in schema.items()}


class JudgeClient:
    """Limits questions to `judge.concurrency` at once and `judge.budget` per run, and caches answers.

    Answers from an endpoint are cached as one JSON file each, so a resumed run does not pay for the same
    question twice. Answers from engines are not cached: they change with the weights.
    """

    def __init__(
        self, source: JudgeEndpoint | EngineAsk, settings: Judge, folder: Path | None = None
    ) -> None:
        """Create the cache folder and count the questions asked so far.

        Args:
            folder: cache of answers; None disables caching.
        """
        self._source = source
        self._settings = settings
        self._folder = folder
        self._slots = asyncio.Semaphore(settings.concurrency)
        self.asked = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.asked = sum(1 for _ in folder.glob("*.json"))

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        settings = self._settings
        asking = {
            "url": settings.url,
            "model": settings.model,
            "question": question.write(settings.characters),
            "schema": schema,
            "max_tokens": _most_tokens(question, settings),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        kept = self._kept(asking)
        if kept is not None and kept.exists():
            return Answer(str(json.loads(kept.read_text())["answer"]))
        async with self._slots:
            if settings.budget and self.asked >= settings.budget:
                raise JudgeBudgetSpent(
                    f"judge.budget = {settings.budget} is exhausted: raise it and continue with resume=auto"
                )
            self.asked += 1
            answer = await self._source(question, schema)
        if kept is not None:
            atomic_write(kept, json.dumps({**asking, "answer": answer.text}, indent=1))
        return answer

    async def close(self) -> None:
        """Close the underlying client."""
        await self._source.close()

    def _kept(self, asking: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(asking, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def patience(settings: Judge) -> float:
    """Return the maximum time of a question in seconds, including retries."""
    return (settings.timeout + LONGEST_PAUSE) * (RETRIES + 1)


def _most_tokens(question: Question, settings: Judge) -> int:
    """Return the maximum tokens of an answer, ignoring the context limit."""
    return max(question.tokens, settings.max_tokens)


def _usage(completion: Any) -> tuple[int, int]:
    """Return the prompt and generated tokens, or zeros if the endpoint does not report valid usage."""
    from openai.types import CompletionUsage

    match completion.usage:
        case CompletionUsage(prompt_tokens=int(read), completion_tokens=int(written)):
            return read, written
    return 0, 0


def open_judge(settings: Judge, folder: Path, renderer: Renderer, engines: Sequence[Generate]) -> JudgeClient:
    """Create the judge that `judge.source` names.

    Raises:
        JudgeError: the environment variable with the endpoint's API key is not set.
    """
    if settings.source == "endpoint":
        return JudgeClient(JudgeEndpoint(settings), settings, folder)
    return JudgeClient(EngineAsk(renderer, engines, settings), settings)
