"""The one way to call a Ray actor: every call has a deadline, and every failure a type.

A caller sees what its callee raised, if that is one of this package's own errors; RemoteDefect for any other
exception of the callee; and a RemoteError if no answer comes. The caller decides how to react.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

T = TypeVar("T")


class RemoteError(RuntimeError):
    """No answer will come; the message is for the user."""


class RemoteTimeout(RemoteError):
    """The answer took too long; the message names the setting to raise."""


class ActorUnavailable(RemoteError):
    """The actor cannot be reached now; it may answer the next call."""


class ActorLost(RemoteError):
    """The actor has died."""


class AnswerLost(RemoteError):
    """An object of the call was lost, with the node or process that held it; the actor may be alive."""


class RemoteDefect(RuntimeError):
    """The callee raised an unexpected exception; its traceback is in `__cause__`."""


class Watching(Protocol):
    """A watchdog that has to know how long a wait may take."""

    def waiting(self, seconds: float) -> AbstractContextManager[None]:
        """Expect no heartbeat for `seconds`."""


ADVICE = "Its log is in Ray's dashboard; resume=auto resumes from the last checkpoint, if there is one."
WATCHDOG: ContextVar[Watching | None] = ContextVar("WATCHDOG", default=None)  # told about every wait


async def call(
    actor: Any, method: str, *args: Any, timeout: float, setting: str, what: str | None = None
) -> Any:
    """Await `actor.method(*args)`.

    Args:
        timeout: seconds.
        setting: name of the setting that `timeout` comes from.
        what: describes the call in errors; by default the method's name.

    Raises:
        RemoteTimeout, ActorUnavailable, ActorLost, AnswerLost: no answer.
        RemoteDefect: the callee failed unexpectedly. Errors of this package are raised as they are.
    """
    return await await_remote(
        getattr(actor, method).remote(*args), timeout=timeout, setting=setting, what=what or method
    )


async def insist(actor: Any, method: str, *args: Any, start_timeout: float, **limit: Any) -> Any:
    """Like `call`, but retried if the actor's process is replaced in the meantime; for calls that may be
    repeated.

    Args:
        start_timeout: seconds in which the new process must be `ready` (`cluster.start_timeout`).
        limit: `timeout`, `setting` and `what` of `call`.

    Raises:
        ActorLost: Ray does not start it again.
    """
    while True:
        try:
            return await call(actor, method, *args, **limit)
        except ActorUnavailable:
            await back(actor, timeout=start_timeout)


async def back(actor: Any, method: str = "ready", *, timeout: float) -> Any:
    """Wait until an actor whose process is being replaced answers this method; returns the answer.

    Args:
        timeout: seconds (`cluster.start_timeout`).

    Raises:
        ActorLost: Ray does not start it again.
        RemoteTimeout: it was not ready in time.
    """
    limit: dict[str, Any] = {"setting": "cluster.start_timeout", "what": "starting an actor again"}
    until = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            return await call(actor, method, timeout=timeout, **limit)
        except ActorUnavailable as error:
            if asyncio.get_running_loop().time() > until:
                raise too_late(limit["what"], timeout, limit["setting"]) from error
            await asyncio.sleep(0.2)


async def end_of(actor: Any, method: str) -> RemoteError:
    """Wait for a call that ends only with the actor's process; return how it ended.

    ActorUnavailable: Ray is replacing the process. ActorLost: it is not.
    """
    try:
        await getattr(actor, method).remote()
    except RayError as error:
        return no_answer(method, error)
    return ActorLost(f"{method} has returned")


async def await_remote(awaitable: Awaitable[T], *, timeout: float, setting: str, what: str) -> T:
    """Await an object reference, or anything else, as `call` does."""
    watchdog = WATCHDOG.get()
    try:
        with watchdog.waiting(timeout) if watchdog else nullcontext():
            async with asyncio.timeout(timeout):
                return await awaitable
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RayError):  # an argument could not be fetched
            raise no_answer(what, cause) from error
        if any(kind.__module__.startswith("hindsight.") for kind in type(cause).__mro__):
            raise cause from None
        raise RemoteDefect(f"{what} failed: {type(cause).__name__}: {cause}") from error
    except RayError as error:
        raise no_answer(what, error) from error
    except TimeoutError as error:
        raise too_late(what, timeout, setting) from error


def too_late(what: str, timeout: float, setting: str) -> RemoteTimeout:
    """The error of a missed deadline."""
    return RemoteTimeout(f"{what} took longer than {timeout:g} s; on a slow machine, increase {setting}")


def no_answer(what: str, error: RayError) -> RemoteError:
    """The error of a call that Ray could not finish."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = " … ".join(dict.fromkeys((lines[0].strip(), lines[-1].strip())))  # the last line has the cause
    reason = reason.partition(" Some common causes include")[0]  # of which Ray knows no more than we do
    if isinstance(error, ActorUnavailableError):
        return ActorUnavailable(f"{what}: the actor cannot be reached now ({reason})")
    if isinstance(error, RayActorError):
        return ActorLost(f"{what}: the actor has died ({reason}). " + ADVICE)
    return AnswerLost(f"{what}: the answer was lost ({type(error).__name__}: {reason})")
