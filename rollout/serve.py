"""Serve the simulated user's model at an OpenAI-compatible endpoint.

environment slot ──HTTP──► vLLM's server, a child process of this actor, with fixed weights
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import httpx
import ray

from hindsight.configs.schema import Config
from hindsight.envs.runtime.linux import die_with_parent
from hindsight.rollout.engine import engine_env
from hindsight.rollout.types import EngineError

NAME = "user"  # the model's name at the endpoint


@dataclass(frozen=True)
class Address:
    """URL and API key of the endpoint."""

    url: str
    key: str
    model: str = NAME


class ModelServer:
    """vLLM's server for one model. Create it by `ray.remote(ModelServer)` with `endpoint_env`."""

    def __init__(self, model: str, config: Config) -> None:
        """Start the server for the model folder `model`."""
        host = ray.util.get_node_ip_address()
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
        self.address = Address(f"http://{host}:{port}/v1", secrets.token_hex(16))
        self._log = tempfile.NamedTemporaryFile(prefix="hindsight-user-", suffix=".log")  # noqa: SIM115
        self._server = subprocess.Popen(
            server_command(model, config, host, port),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "VLLM_API_KEY": self.address.key},  # not an argument: those are public
            preexec_fn=die_with_parent,
        )

    async def ready(self) -> Address:
        """Wait until the server answers.

        Raises:
            EngineError: the server exited. The message includes the end of its log.
        """
        health = self.address.url.removesuffix("/v1") + "/health"
        async with httpx.AsyncClient(timeout=5.0) as client:
            while self._server.poll() is None:
                try:
                    if (await client.get(health)).is_success:
                        return self.address
                except httpx.TransportError:
                    await asyncio.sleep(0.5)
        with open(self._log.name, errors="replace") as log:
            raise EngineError(
                f"the user's endpoint exited with code {self._server.returncode}: {log.read()[-2000:]}"
            )


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
