"""Remote calls: answers, deadlines, and the type of every failure."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RayTaskError,
)

from hindsight.envs.base import DataMissing, EnvError
from hindsight.envs.runtime.remote import (
    ActorLost,
    ActorUnavailable,
    AnswerLost,
    RemoteDefect,
    RemoteError,
    RemoteTimeout,
    await_remote,
    call,
)


class OwnError(EnvError):
    """As an environment outside this package defines it."""


def raised_by_callee(cause: Exception) -> RayTaskError:
    return RayTaskError("step", "a long trace", cause).as_instanceof_cause()


def ask(outcome: object, timeout: float = 5.0) -> object:
    """Call an actor's method that ends in `outcome`."""

    async def method(*args: object) -> object:
        if isinstance(outcome, Exception):
            raise outcome
        return (outcome, *args)

    actor = SimpleNamespace(step=SimpleNamespace(remote=method))
    return asyncio.run(call(actor, "step", 1, 2, timeout=timeout, setting="a.timeout"))


def test_an_answer_is_passed_on():
    assert ask("done") == ("done", 1, 2)


def test_a_late_answer_names_the_setting():
    with pytest.raises(RemoteTimeout, match=r"^the moon took longer than 0\.01 s; .* increase moon\.timeout"):
        asyncio.run(await_remote(asyncio.sleep(5), timeout=0.01, setting="moon.timeout", what="the moon"))


@pytest.mark.parametrize("error", [DataMissing("set env.data"), OwnError("no such game")])
def test_an_error_of_this_package_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        ask(raised_by_callee(error))
    assert caught.value is error and not isinstance(caught.value, RayError)


def test_any_other_error_is_a_defect_with_its_trace_as_the_cause():
    with pytest.raises(RemoteDefect, match=r"^step failed: KeyError: 'bug'$") as caught:
        ask(raised_by_callee(KeyError("bug")))
    assert "a long trace" in str(caught.value.__cause__)
    assert not isinstance(caught.value, RemoteError)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ActorUnavailableError("node 3 is away", None), ActorUnavailable, "cannot be reached now.*node 3"),
        (ActorDiedError(), ActorLost, "step: the actor has died.*resume=auto"),
        (RayActorError(), ActorLost, "has died"),
        (ObjectLostError("f" * 56, None, ""), AnswerLost, "lost.*ObjectLostError"),
        (OwnerDiedError("f" * 56, None, ""), AnswerLost, "OwnerDiedError"),
        (raised_by_callee(ObjectLostError("f" * 56, None, "")), AnswerLost, "ObjectLostError"),  # an argument
    ],
)
def test_a_call_that_ray_cannot_finish_has_a_type(error, kind, text):
    with pytest.raises(kind, match=text) as caught:
        ask(error)
    assert type(caught.value) is kind and not isinstance(caught.value, RayError)


class Victim:
    def own(self) -> None:
        raise DataMissing("set env.data")

    def bug(self) -> None:
        raise KeyError("bug")

    def wait(self) -> None:
        import time

        time.sleep(60)

    def end(self) -> None:
        import os

        os._exit(1)


def test_ray_raises_what_the_fakes_do(ray_local):
    async def check() -> None:
        victim = ray.remote(Victim).options(num_cpus=0).remote()
        limit = {"timeout": 30.0, "setting": "a.timeout"}
        with pytest.raises(DataMissing, match=r"^set env.data$"):
            await call(victim, "own", **limit)
        with pytest.raises(RemoteDefect, match=r"^bug failed: KeyError: 'bug'$"):
            await call(victim, "bug", **limit)
        with pytest.raises(ActorLost, match="has died"):
            await call(victim, "end", **limit)
        with pytest.raises(ActorLost, match="has died"):
            await call(victim, "own", **limit)
        slow = ray.remote(Victim).options(num_cpus=0).remote()
        with pytest.raises(RemoteTimeout, match=r"a\.timeout"):
            await call(slow, "wait", timeout=0.5, setting="a.timeout")
        ray.kill(slow)

    asyncio.run(check())
