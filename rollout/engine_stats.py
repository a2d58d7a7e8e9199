"""What vLLM's scheduler says of each of its steps, as the figures of `Engine.stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import SchedulerStats


class EngineStats(PrometheusStatLogger):
    """Keeps the newest figures, and sums since the start.

    vLLM adds its logger for Prometheus, with some hundred series that nothing here reads, unless it is given
    one of that class: this takes its place. vLLM's logger for Ray's metrics needs what `ray[serve]` installs.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        self.figures: dict[str, float] = {
            "decoding": 0,  # requests in the batch
            "waiting": 0,  # requests that wait for a place in it
            "kv_cache": 0.0,  # share of its blocks in use
            "looked_up_tokens": 0,  # of prompts, in the prefix cache
            "found_tokens": 0,
        }

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: object,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        """Take note of a step of the engine."""
        now = self.figures
        if scheduler_stats is not None:
            now["decoding"] = scheduler_stats.num_running_reqs
            now["waiting"] = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            now["kv_cache"] = scheduler_stats.kv_cache_usage
            now["looked_up_tokens"] += scheduler_stats.prefix_cache_stats.queries
            now["found_tokens"] += scheduler_stats.prefix_cache_stats.hits

    def log_engine_initialized(self) -> None:
        """Nothing to do."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Nothing to do."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing to do."""


def stats_of(llm: AsyncLLM) -> EngineStats:
    """The figures of an engine that was made with `EngineStats`."""
    assert llm.logger_manager is not None
    [stats] = llm.logger_manager.stat_loggers
    assert isinstance(stats, EngineStats)
    return stats
