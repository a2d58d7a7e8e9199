"""The run's own endpoint: vLLM's server below an actor, which ends with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import openai
import pytest
import ray
from settled import on_cpus

from hindsight.cluster.start import USER_KEY, variables
from hindsight.configs.schema import Config, Model, Rollout
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
    endpoint = ray.remote(ModelServer).options(num_cpus=0.5, **variables(endpoint_env(CONFIG), gpus=0))
    actor = endpoint.remote(str(nano), CONFIG)
    address = ray.get(actor.ready.remote(), timeout=300)
    [server] = ray.get(actor.__ray_call__.remote(lambda held: [held._server.pid]))
    below = children(server)

    messages = [{"role": "user", "content": "You are in the middle of a room."}]
    client = openai.OpenAI(base_url=address.url, api_key=address.key, timeout=60)
    answer = client.chat.completions.create(
        model=address.model, messages=messages, max_tokens=4, temperature=0
    )
    assert answer.usage.completion_tokens <= 4 and answer.choices[0].message.content is not None
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address.url, api_key="guess").models.list()

    ray.kill(actor)
    until = time.monotonic() + 30
    while any(map(running, [server, *below])) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(running, [server, *below]))


def test_the_key_is_no_argument() -> None:
    """Arguments of a process are for everyone on the machine to read."""
    address = Address("http://10.0.0.1:1/v1", "secret")
    assert "secret" not in " ".join(server_command("model", CONFIG, "10.0.0.1", 1))
    user = TauSettings(name="taubench").with_endpoint(address.url, address.model, USER_KEY).user
    assert (user.source, user.url, user.api_key_env) == ("endpoint", address.url, USER_KEY)
    assert USER_KEY not in os.environ
