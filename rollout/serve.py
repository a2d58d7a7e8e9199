"""Serve the simulated user's model at an OpenAI-compatible endpoint.

environment slot ──HTTP──► vLLM's server, a child process of this actor, with fixed weights

When one of the two processes is lost, Ray starts both again, at the same address.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import NoReturn

import httpx
import ray

from hindsight.configs.environ import Named
from hindsight.configs.schema import Config
from hindsight.envs.runtime.linux import die_with_parent
from hindsight.rollout.engine import engine_env
from hindsight.rollout.sockets import use_own_folder
from hindsight.rollout.types import EngineError

NAME = "user"  # the model's name at the endpoint


@dataclass(frozen=True)
class Address:
    """Where the endpoint is, and its API key."""

    host: str
    port: int
    key: str = field(repr=False)
    model: str = NAME

    @property
    def url(self) -> str:
        """For an OpenAI client."""
        return f"http://{self.host}:{self.port}/v1"


def new_address() -> Address:
    """A free port of this node, with a new key."""
    host = ray.util.get_node_ip_address()
    with socket.create_server((host, 0)) as probe:
        return Address(host, probe.getsockname()[1], secrets.token_hex(16))


class ModelServer(Named):
    """vLLM's server for one model. Create it by `ray.remote(ModelServer)` with `endpoint_env`."""

    def __init__(self, model: str, config: Config, address: Address) -> None:
        """Start the server for the model folder `model`.

        Args:
            address: of this node; the environments know no other.

        Raises:
            EngineError: Ray has moved this actor to another node.
        """
        if (host := ray.util.get_node_ip_address()) != address.host:
            raise EngineError(f"the user's endpoint cannot move from {address.host} to {host}")
        self.address = address
        self.process = secrets.token_hex(8)  # names this process among those that Ray starts
        self._met = (
            ray.get_runtime_context().was_current_actor_reconstructed
        )  # whether the server has answered
        use_own_folder()  # of sockets
        self._log = tempfile.NamedTemporaryFile(prefix="hindsight-user-", suffix=".log")  # noqa: SIM115
        self._server = subprocess.Popen(
            server_command(model, config, address.host, address.port),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "VLLM_API_KEY": self.address.key},  # not an argument: those are public
            preexec_fn=die_with_parent,
        )

    async def ready(self) -> str:
        """Wait until the server answers; returns a name of this process, which its successor does not have.

        Raises:
            EngineError: the server exited before it ever answered. The message includes the end of its log.
        """
        health = f"http://{self.address.host}:{self.address.port}/health"
        async with httpx.AsyncClient(timeout=5.0) as client:
            while self._server.poll() is None:
                try:
                    if (await client.get(health)).is_success:
                        self._met = True
                        return self.process
                except httpx.TransportError:
                    pass  # it does not listen yet
                await asyncio.sleep(0.5)
        if self._met:
            self._end()
        raise EngineError(f"the user's endpoint exited with code {self._server.returncode}: {self._said()}")

    async def watch(self) -> None:
        """Never return; end this process if the server ends, so that Ray replaces both."""
        while self._server.poll() is None:
            await asyncio.sleep(1.0)
        self._end()

    def _end(self) -> NoReturn:
        print(
            f"the user's endpoint exited with code {self._server.returncode}: {self._said()}", file=sys.stderr
        )
        os._exit(1)

    def _said(self) -> str:
        """The end of the server's log."""
        with open(self._log.name, errors="replace") as log:
            return log.read()[-2000:]


def server_command(model: str, config: Config, host: str, port: int) -> list[str]:
    """Return vLLM's command line for this endpoint."""
    rollout = config.rollout
    # Not `vllm serve`: it reads metadata of a package named vllm, but the CPU build has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--host", host, "--port", str(port), "--served-model-name", NAME]
    command += ["--dtype", config.model.dtype, "--max-num-seqs", str(rollout.max_num_seqs)]
    command += ["--max-model-len", "auto"]  # the model's own limit, if the cache has room
    command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    command += ["--gpu-memory-utilization", str(rollout.gpu_memory_utilization)]
    command += ["--tensor-parallel-size", str(rollout.tensor_parallel)]
    if not rollout.compile:
        command.append("--enforce-eager")
    return command


def endpoint_env(config: Config) -> dict[str, str]:
    """Return the environment variables for the actor's process."""
    return engine_env(config) | {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.rollout.kv_cache_gib)))}
