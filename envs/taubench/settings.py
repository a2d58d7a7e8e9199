"""TauBench's own settings: who plays the customer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from hindsight.configs.schema import Env
from hindsight.configs.setting import setting


@dataclass(frozen=True)
class User:
    """The simulated customer that the agent talks to."""

    source: Literal["scripted", "endpoint", "engine"] = setting(
        "scripted", "played by the task's script, a model at an endpoint, or a model that the run serves"
    )
    url: str = setting("", "base URL of an OpenAI-compatible endpoint")
    model: str = setting("", "its model; for engine a folder or hub name, empty is model.path")
    api_key_env: str = setting("OPENAI_API_KEY", "environment variable that holds its key")
    temperature: float = setting(0.0, "sampling temperature", low=0.0)
    timeout: float = setting(60.0, "timeout of one answer (s)", low=0.1)
    retries: int = setting(2, "retries after a failed call", low=0)


@dataclass(frozen=True)
class TauSettings(Env):
    """The section `env` for TauBench."""

    user: User = field(default_factory=User)

    @property
    def served_model(self) -> str | None:
        return self.user.model if self.user.source == "engine" else None

    def with_endpoint(self, url: str, model: str, api_key_env: str) -> TauSettings:
        user = replace(self.user, source="endpoint", url=url, model=model, api_key_env=api_key_env)
        return replace(self, user=user)
