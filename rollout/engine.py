"""One student engine: vLLM's AsyncLLM as an async Ray actor, with token ids in and out.

Create it by `ray.remote(Engine)` with `engine_env(config)` as its `env_vars`. vLLM's engine core is a child
process of the actor and inherits these variables.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

import numpy as np
import ray

from hindsight.configs.environ import Named, actor_environment
from hindsight.configs.schema import Config
from hindsight.rollout.adapter import write_adapter
from hindsight.rollout.device import find_device
from hindsight.rollout.outline import layer_names
from hindsight.rollout.sampled import to_generation
from hindsight.rollout.segment import Mirror, fetch
from hindsight.rollout.sockets import use_own_folder
from hindsight.rollout.starting import file_of, telling
from hindsight.rollout.types import EngineError, EngineLost, Generation, Sampling
from hindsight.rollout.weights import WeightSet, checksum, unpack_tensors

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs, RequestOutput, SamplingParams
    from vllm.config.model import ModelDType
    from vllm.lora.request import LoRARequest

ADAPTERS = 2  # in one batch: the newest and the one that older requests started with
GPU_BATCH = 8192  # tokens per step; vLLM's default of 2,048 is slow for long prompts
CPU_BLOCK = 32  # tokens per KV block on CPU; vLLM's default of 128 would not cache shorter prefixes


def engine_env(config: Config) -> dict[str, str]:
    """Return the environment variables for an engine's process.

    They limit threads: Ray would set OMP_NUM_THREADS to the actor's CPUs, and idle OpenMP threads that spin
    would take those cores from other processes.
    """
    env = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise all engines of a machine use the same cores
        "VLLM_NO_USAGE_STATS": "1",
        # On a CPU, vLLM's worker then runs inside the engine core, which stays a process of its own.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    if config.weight_sync.transport == "ipc":
        # Handles of GPU memory are Python objects, which vLLM passes to its own processes only by pickle.
        env["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return actor_environment(config.cluster.threads) | env


def engine_args(model: str, config: Config, index: int) -> AsyncEngineArgs:
    """Return vLLM's settings for one engine."""
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig, WeightTransferConfig
    from vllm.platforms import current_platform

    rollout = config.rollout
    memory: dict[str, Any] = {
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "enable_sleep_mode": config.cluster.sharing == "in_turn",
        "max_num_batched_tokens": max(GPU_BATCH, rollout.max_num_seqs),
        # One actor has all GPUs of its engine. By default, vLLM would look for them in the placement group.
        "distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else None,
    }
    if current_platform.is_cpu():
        memory = {
            "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
            "block_size": CPU_BLOCK,
            # vLLM's CPU engine crashes if it splits the prompt of a seeded request over steps ("CPU Generator
            # does not use offset"). A step must therefore fit the longest prompt and all other sequences.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": config.model.max_length + rollout.max_num_seqs,
        }
    return AsyncEngineArgs(
        model=model,
        dtype=cast("ModelDType", config.model.dtype),
        max_model_len=config.model.max_length,
        seed=config.seed + index,
        enforce_eager=not rollout.compile,
        enable_prefix_caching=True,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel,
        logprobs_mode="processed_logprobs",  # of the distribution that is sampled from, with the temperature
        disable_log_stats=True,
        # A model that is far from writing JSON would fill its answer with spaces.
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        weight_transfer_config=WeightTransferConfig(backend=f"hindsight_{config.weight_sync.transport}"),
        worker_extension_cls="hindsight.rollout.transfer.WeightsExtension",
        **memory,
        **lora_args(model, config),
    )


def lora_args(model: str, config: Config) -> dict[str, Any]:
    """Return vLLM's settings for a model with a trained adapter.

    The head gets no adapter layer, because with one vLLM mixes up the rows of prompt log-probs.
    """
    from vllm.config.lora import MaxLoRARanks

    lora = config.learner.lora
    if not lora.rank:
        return {}
    return {
        "enable_lora": True,
        "max_loras": ADAPTERS,
        "max_lora_rank": min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank),
        "lora_target_modules": layer_names(model, lora),
    }


@dataclass
class ServedAdapter:
    """An adapter that vLLM serves, and its number of running requests."""

    request: LoRARequest
    checksum: str
    folder: tempfile.TemporaryDirectory[str]  # vLLM reloads the adapter from it after an eviction
    running: int = 0


class Engine(Named):
    """Samples and scores with one copy of the student's weights. Methods are called through Ray."""

    def __init__(self, model: str, config: Config, index: int) -> None:
        """Load the model folder `model` as weight version 0."""
        started = time.monotonic()
        use_own_folder()  # of sockets
        self.device = find_device()  # raises if the GPU is unusable; vLLM would silently use the CPU
        self.config, self.index = config, index
        self.version = 0
        self.failure = ""  # why the weights can no longer be trusted
        # Ray may have replaced a process that had newer weights than those it is made from.
        here = ray.get_runtime_context()
        self.outdated = bool(here.get_actor_id()) and here.was_current_actor_reconstructed
        self.requests = count()
        self.totals = dict.fromkeys(
            ("running", "requests", "prompt_tokens", "cached_tokens", "generated_tokens"), 0
        )
        self.mirror = Mirror()  # of weights from another machine, for vLLM's processes
        self.adapters: list[ServedAdapter] = []  # oldest first; new requests use the last
        with telling(file_of(config.out, index)):
            from vllm.v1.engine.async_llm import AsyncLLM

            from hindsight.rollout.engine_stats import EngineStats, stats_of

            args = engine_args(model, config, index)
            self.llm = AsyncLLM.from_engine_args(args, stat_loggers=[EngineStats])
        self.scheduler = stats_of(self.llm)
        self.llm.log_stats = False  # statistics of each token, which cost some microseconds of it
        self.start_seconds = time.monotonic() - started

    async def ready(self) -> dict[str, Any]:
        """Wait until the engine accepts requests; return its start time in seconds."""
        async with self._guard("starting"):
            await self.llm.update_weight_version(str(self.version))
        return {"engine": self.index, "version": self.version, "seconds": self.start_seconds}

    async def watch(self) -> None:
        """Never return; end this process if vLLM's engine core ends, so that Ray replaces both."""
        while self.failure or not self.llm.errored:
            await asyncio.sleep(1.0)
        self._end()

    def _end(self) -> NoReturn:
        """End this process after vLLM's engine core has ended."""
        print(f"engine {self.index}: vLLM's engine core has ended; its own log says why", file=sys.stderr)
        os._exit(1)

    async def serves(self) -> bool:
        """Whether requests are accepted. After a lost process, its successor needs new weights first."""
        return not self.outdated

    async def serve(self) -> None:
        """Accept requests with the weights that the process started with: there has been no weight sync."""
        self.outdated = False

    async def generate(
        self, prompt_ids: np.ndarray, sampling: Sampling, seconds: float | None = None
    ) -> Generation:
        """Sample one response to `prompt_ids`, (L,) int.

        Args:
            seconds: time limit; at most `rollout.request_timeout`.

        Raises:
            EngineError: the engine failed, its response is unusable, or the time limit was exceeded.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        schema = sampling.json_schema
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            logprobs=0,
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
        )
        output = await self._run(prompt_ids, params, seconds)
        self.totals["requests"] += 1
        self.totals["prompt_tokens"] += len(prompt_ids)
        self.totals["cached_tokens"] += output.num_cached_tokens or 0
        self.totals["generated_tokens"] += len(output.outputs[0].token_ids)
        try:
            return to_generation(output, sampling.max_tokens, self.llm.model_config.get_vocab_size())
        except EngineError as error:
            raise EngineError(f"engine {self.index}: {error}") from error

    async def score(self, ids: np.ndarray) -> np.ndarray:
        """Return log-probs of ids[1:] at temperature 1, (L - 1,) float32, without the prefix cache.

        Raises:
            EngineError: the engine failed or the time limit was exceeded.
        """
        from vllm import SamplingParams

        output: Any = await self._run(ids, SamplingParams(max_tokens=1, prompt_logprobs=0))
        return np.asarray(output.prompt_logprobs.logprobs, dtype=np.float32)

    async def load_weights(self, weights: WeightSet) -> None:
        """Replace the weights between two steps. Requests in flight continue with the new weights.

        If an adapter is trained, `weights` contains only the adapter. New requests use it; requests in flight
        finish with the adapter they started with.

        Raises:
            SegmentUnreachable: this machine has no copy of the weights.
            EngineError: the update failed. The engine is then disabled, since the update may be incomplete.
        """
        from hindsight.rollout.transfer import update_info

        if self.config.learner.lora.rank:
            await self.add_adapter(weights, await asyncio.to_thread(fetch, weights))
            return
        handle = await asyncio.to_thread(self.mirror.find, weights)
        await self.start_update()
        await self.receive_update(update_info(handle, weights.layout))
        await self.finish_update(weights.version)

    async def add_adapter(self, weights: WeightSet, flat: np.ndarray) -> None:
        """Use this adapter for new requests and remove adapters without running requests."""
        from vllm.lora.request import LoRARequest

        async with self._guard(f"loading adapter {weights.version}"):
            if weights.version <= self.version:  # vLLM would keep the old adapter with this number
                raise ValueError(f"adapter {self.version} is served already; got {weights.version}")
            folder = tempfile.TemporaryDirectory(prefix="hindsight-adapter-")
            tensors = dict(unpack_tensors(flat, weights.layout))
            write_adapter(Path(folder.name), tensors, self.config.learner.lora)
            request = LoRARequest(f"adapter {weights.version}", weights.version, folder.name)
            await self.llm.add_lora(request)
            await self.llm.update_weight_version(str(weights.version))
            unused = [served for served in self.adapters if not served.running]
            self.adapters = [served for served in self.adapters if served.running]
            self.adapters.append(ServedAdapter(request, checksum(flat, weights.layout), folder))
            self.version, self.outdated = weights.version, False
            for served in unused:
                await self.llm.remove_lora(served.request.lora_int_id)
                served.folder.cleanup()

    async def init_transfer(self, info: dict[str, Any]) -> None:
        """Join the learner's transfer group, for transports that use one."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with self._guard("joining the transfer group"):
            await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    async def start_update(self) -> None:
        """Pause all requests and prepare the model to receive tensors."""
        async with self._guard("starting a weight update"):
            await self.llm.pause_generation(mode="keep", clear_cache=False)
            await self.llm.start_weight_update()

    async def receive_update(self, info: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Receive tensors over the configured transport. `info` may be a list with one message per worker."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._guard("receiving weights"):
            await self.llm.update_weights(WeightTransferUpdateRequest(update_info=info))

    async def finish_update(self, version: int) -> None:
        """Activate the new weights as `version`, drop all keys of the old ones, and resume requests."""
        async with self._guard(f"activating weights {version}"):
            await self.llm.finish_weight_update(str(version))
            # Includes requests in flight: they use keys of the old weights, and block the reset until freed.
            if not await self.llm.reset_prefix_cache(reset_running_requests=True):
                raise RuntimeError("vLLM did not reset its prefix cache")
            self.version, self.outdated = version, False
            await self.llm.resume_generation()

    async def sleep(self) -> None:
        """Leave the GPU: weights go to the host, the KV cache is dropped. Nothing may be running."""
        if self.device == "cuda":
            async with self._guard("going to sleep"):
                await self.llm.sleep(level=1)

    async def wake(self) -> None:
        """Return to the GPU."""
        if self.device == "cuda":
            async with self._guard("waking up"):
                await self.llm.wake_up()

    async def fingerprint(self) -> tuple[int, set[str]]:
        """Return the weight version and the checksums of the buffers that the engine's processes received."""
        newest = self.adapters[-1:]
        async with self._guard("telling its weights"):
            checksums = [served.checksum for served in newest] or await self.llm.collective_rpc(
                "received_checksum"
            )
            return int(await self.llm.get_weight_version()), set(checksums)

    async def stats(self) -> dict[str, float]:
        """Return the number of running requests, the weight version, totals, and `EngineStats.figures`."""
        return {**self.totals, **self.scheduler.figures, "version": self.version}

    async def _run(
        self, ids: np.ndarray, params: SamplingParams, seconds: float | None = None
    ) -> RequestOutput:
        """Run one request within the deadline. Raises EngineError."""
        from vllm import TokensPrompt
        from vllm.exceptions import VLLMError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        self._check()
        if self.outdated:
            raise EngineLost(f"engine {self.index} was started again and waits for the newest weights")
        context = self.config.model.max_length
        if not 0 < len(ids) < context:
            raise EngineError(
                f"engine {self.index}: prompt of {len(ids)} tokens; expected 1 to {context - 1} "
                f"(model.max_length={context})"
            )
        params.output_kind = RequestOutputKind.FINAL_ONLY
        params.detokenize = False
        params.flat_logprobs = True
        # The salt separates keys of different weights even if a cache reset is missed.
        prompt = TokensPrompt(prompt_token_ids=ids.tolist(), cache_salt=f"weights {self.version}")
        deadline = min(self.config.rollout.request_timeout, seconds or math.inf)
        served = self.adapters[-1] if self.adapters else None
        generating = self.llm.generate(
            prompt, params, str(next(self.requests)), lora_request=served.request if served else None
        )
        self.totals["running"] += 1
        if served:
            served.running += 1
        try:
            async with asyncio.timeout(deadline):  # vLLM aborts a request that is no longer awaited
                [output] = [final async for final in generating]
        except TimeoutError as error:
            raise EngineError(f"engine {self.index}: no response within {deadline:g} s") from error
        except EngineDeadError as error:
            kind = EngineError if self.failure else EngineLost
            raise kind(f"engine {self.index}: {self.failure or error}") from error
        except VLLMError as error:
            raise EngineError(f"engine {self.index}: {error}") from error
        finally:
            self.totals["running"] -= 1
            if served:
                served.running -= 1
        return output

    @asynccontextmanager
    async def _guard(self, doing: str) -> AsyncIterator[None]:
        """Disable the engine if part of a weight update fails or is canceled."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._check()
        try:
            yield
        except EngineDeadError:
            self._end()
        except BaseException as error:  # vLLM raises plain Exceptions from its workers
            self.failure = f"{doing} failed: {str(error) or type(error).__name__}"
            # Requests in flight are paused and would otherwise wait for their deadline.
            self.llm.output_processor.propagate_error(EngineDeadError())
            self.llm.shutdown()
            if isinstance(error, Exception):
                raise EngineError(f"engine {self.index}: {self.failure}") from error
            raise

    def _check(self) -> None:
        if self.failure:
            raise EngineError(f"engine {self.index} is disabled: {self.failure}")
