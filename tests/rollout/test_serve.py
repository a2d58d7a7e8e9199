"""The run's own endpoint: vLLM's server below an actor, which ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from settled import on_cpus

from hindsight.cluster.start import STARTING, USER_KEY, find_address, variables
from hindsight.configs.schema import Config, Model, Rollout
from hindsight.envs.runtime.remote import ActorUnavailable, RemoteError, back, end_of
from hindsight.envs.taubench.settings import TauSettings
from hindsight.rollout.serve import Address, ModelServer, endpoint_env, server_command

CONFIG = on_cpus(
    Config(model=Model(path="nano", max_length=512), rollout=Rollout(max_num_seqs=2, kv_cache_gib=0.25))
)


def running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_model_answers_behind_a_key_and_ends_with_its_actor(ray_local: None, nano: Path) -> None:
    """A lost server restarts at the same address with the same key, in new processes."""
    group = placement_group([{"CPU": 0.5}])
    place = {"num_cpus": 0.5, "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0)}
    place |= variables(endpoint_env(CONFIG), gpus=0)
    address = asyncio.run(find_address(place, timeout=300, setting=STARTING))
    actor = ray.remote(ModelServer).options(max_restarts=1, **place).remote(str(nano), CONFIG, address)
    first = ray.get(actor.ready.remote(), timeout=300)
    client = openai.OpenAI(base_url=address.url, api_key=address.key, timeout=60)

    def answers() -> int:
        """Ask the model; returns the server's process."""
        messages: Any = [{"role": "user", "content": "You are in the middle of a room."}]
        answer = client.chat.completions.create(
            model=address.model, messages=messages, max_tokens=4, temperature=0
        )
        assert answer.usage is not None and answer.usage.completion_tokens <= 4
        assert answer.choices[0].message.content is not None
        [server] = ray.get([actor.__ray_call__.remote(lambda held: held._server.pid)])
        return int(server)

    async def lose() -> tuple[RemoteError, str]:
        watching = asyncio.create_task(end_of(actor, "watch"))
        os.kill(server, signal.SIGKILL)
        return await watching, await back(actor, timeout=300)

    server = answers()
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address.url, api_key="guess").models.list()
    lost, second = asyncio.run(lose())
    assert isinstance(lost, ActorUnavailable) and second != first
    successor = answers()
    assert successor != server
    below = children(successor)
    ray.kill(actor)
    until = time.monotonic() + 30
    while any(map(running, [successor, *below])) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(running, [successor, *below]))
    remove_placement_group(group)


def test_the_key_is_no_argument() -> None:
    """Arguments of a process are for everyone on the machine to read."""
    address = Address("10.0.0.1", 1, "secret")
    assert address.url == "http://10.0.0.1:1/v1" and "secret" not in str(address)
    assert "secret" not in " ".join(server_command("model", CONFIG, address.host, address.port))
    user = TauSettings(name="taubench").with_endpoint(address.url, address.model, USER_KEY).user
    assert (user.source, user.url, user.api_key_env) == ("endpoint", address.url, USER_KEY)
    assert USER_KEY not in os.environ
