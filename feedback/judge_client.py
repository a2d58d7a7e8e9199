"""Who answers a judge's questions: an OpenAI-compatible endpoint, or the run's own engines.

question ─► JudgeClient (kept answers, budget, so many at once) ─► Endpoint | EngineAsk ─► words | JudgeError
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
from hindsight.feedback.transcript import fitting
from hindsight.rollout.episode import Generate, derive_seed
from hindsight.rollout.render import Renderer
from hindsight.rollout.types import EngineError, Sampling

Schema = Mapping[str, Any]
RETRIES = 2  # after a failed attempt
LONGEST_PAUSE = 10.0  # seconds between two tries
SMALLEST_ANSWER = 64  # tokens: one diagnosis or correction with its JSON
SHARE = 3  # a question is shortened until its answer has what it needs, or context / SHARE


class JudgeError(RuntimeError):
    """A question was not answered: an infrastructure failure, never a reward."""


class JudgeBudgetSpent(JudgeError):
    """The run has asked as many questions as it may."""


@dataclass(frozen=True)
class Answer:
    """What was said, and its cost: 0 where the endpoint does not tell, or an answer was kept."""

    text: str
    tokens_read: int = 0
    tokens_written: int = 0


class Ask(Protocol):
    """Answers a question, as the judge's settings say."""

    async def __call__(self, question: Question, schema: Schema | None = None) -> Answer:
        """
        Args:
            schema: JSON schema that the answer is held to; None asks for words.

        Raises:
            JudgeError: there is no answer, after all tries.
        """


class Endpoint:
    """Any OpenAI-compatible endpoint. Its client tries again after what may pass: 408, 409, 429, 5xx, no
    connection, no answer in time."""

    def __init__(self, settings: Judge) -> None:
        """
        Raises:
            JudgeError: the environment has no key.
        """
        from openai import AsyncOpenAI

        self._settings = settings
        self._key = os.environ.get(settings.api_key_env, "")
        if not self._key:
            raise JudgeError(
                f"judge.api_key_env = {settings.api_key_env!r} is not in the environment: export it (any "
                "text, for an endpoint that asks for no key)"
            )
        self._client = AsyncOpenAI(
            base_url=settings.url,
            api_key=self._key,
            timeout=settings.timeout,
            max_retries=RETRIES,
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
        longest = patience(settings)  # the client's timeout starts anew with each byte
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
            raise JudgeError(f"{settings.url} did not answer within {longest:g} s") from error
        except OpenAIError as error:
            said = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
            raise JudgeError(f"{settings.url}: {said.replace(self._key, '<key>')[:500]}") from None
        except (ValueError, RecursionError) as error:
            raise JudgeError(f"{settings.url} sent no JSON: {error}") from error
        match completion:  # what an endpoint sends is not validated by its client
            case ChatCompletion(choices=[Choice(message=ChatCompletionMessage(content=str(text))), *_]):
                return Answer(text, *_usage(completion))
        raise JudgeError(f"{settings.url} sent no chat completion with words: is its address right?")

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


class EngineAsk:
    """The run's own engines, in turn; another one after a failure. It answers with the current policy."""

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
            json_schema=None if schema is None else json.dumps(schema),
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
        raise JudgeError(f"no engine answered a question: {failure}") from failure

    def _fit(self, question: Question) -> tuple[np.ndarray, int]:
        """The question's ids, (n,) int32, as short as it must be, and the tokens that its answer may have.

        Raises:
            JudgeError: the shortest question leaves less than SMALLEST_ANSWER.
        """
        context, most = self._renderer.context, _most_tokens(question, self._settings)

        def write(characters: int) -> np.ndarray:
            return self._renderer.chat([{"role": "user", "content": question.write(characters)}])

        ids = fitting(write, context - min(most, context // SHARE), self._settings.characters)
        room = min(most, context - len(ids))
        if room < min(most, SMALLEST_ANSWER):
            raise JudgeError(
                f"the shortest question, of {len(ids)} tokens, leaves no room to answer in "
                f"model.max_length = {context}: raise it"
            )
        return ids, room

    async def close(self) -> None:
        """Nothing to close: the engines are the run's."""


class JudgeClient:
    """Asks, never more than `judge.concurrency` questions at once nor `judge.budget` in a run.

    Answers of an endpoint are kept in a folder, one readable file each, and the same question is never asked
    again, so that a resumed run does not pay twice. The engines' answers change with their weights and cost
    nothing: they are not kept.
    """

    def __init__(self, source: Endpoint | EngineAsk, settings: Judge, folder: Path | None = None) -> None:
        """
        Args:
            folder: keeps the answers; made here. None keeps none.
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
                    f"judge.budget = {settings.budget} is spent: raise it and go on with resume=auto"
                )
            self.asked += 1
            answer = await self._source(question, schema)
        if kept is not None:
            atomic_write(kept, json.dumps({**asking, "answer": answer.text}, indent=1))
        return answer

    async def close(self) -> None:
        """Close what it asks."""
        await self._source.close()

    def _kept(self, asking: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(asking, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def patience(settings: Judge) -> float:
    """Most seconds that a question may take once it is its turn."""
    return (settings.timeout + LONGEST_PAUSE) * (RETRIES + 1)


def _most_tokens(question: Question, settings: Judge) -> int:
    """Most tokens of an answer where a context does not set the limit."""
    return max(question.tokens, settings.max_tokens)


def _usage(completion: Any) -> tuple[int, int]:
    """Tokens read and written, as the endpoint tells; nothing of it is validated by the client."""
    from openai.types import CompletionUsage

    match completion.usage:
        case CompletionUsage(prompt_tokens=int(read), completion_tokens=int(written)):
            return read, written
    return 0, 0


def open_judge(settings: Judge, folder: Path, renderer: Renderer, engines: Sequence[Generate]) -> JudgeClient:
    """The judge that the configuration names.

    Raises:
        JudgeError: the environment has no key for the endpoint.
    """
    if settings.source == "endpoint":
        return JudgeClient(Endpoint(settings), settings, folder)
    return JudgeClient(EngineAsk(renderer, engines, settings), settings)
