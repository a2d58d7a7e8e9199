"""TauBench: customer service by conversation and tool calls, over tau2's orchestrator and evaluator.

    TauFamily ──manifest──► tasks: tau2's own train and test splits of retail, airline and telecom
              ──make──────► TauEnv: one conversation at a time

    answer ──► Orchestrator ──calls──► domain's tools ──► observation of role "tool"
                            └─words──► customer ────────► observation of role "user"
                            at the end: tau2's evaluator ──► reward 0 or 1 and the checks that failed

The customer is scripted by default (`envs.taubench.user.ScriptedUser` says what that is worth), or a
language model at an endpoint. tau-bench v1 is not supported: it is not packaged, and tau2's retail and
airline are its domains, revised.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hindsight.configs.environ import PASSWORD_IN_ADDRESS
from hindsight.envs.base import EnvError, EnvFamily, MessageRole, Observation, StepResult, TextEnv, Verdict
from hindsight.envs.tasks import Manifest, TaskSpec
from hindsight.envs.taubench.domains import DOMAINS, domain, make_environment, registered
from hindsight.envs.taubench.settings import TauSettings
from hindsight.envs.taubench.upstream import (
    DEFAULT_MAX_ERRORS,
    DEFAULT_MAX_STEPS,
    AssistantMessage,
    EvaluationType,
    LocalAgent,
    Message,
    Orchestrator,
    RewardInfo,
    Role,
    SimulationRun,
    Task,
    TerminationReason,
    ToolCall,
    UserMessage,
    evaluate_simulation,
)
from hindsight.envs.taubench.user import ScriptedUser, SimulatedUser, Speaker, results
from hindsight.envs.tool_calls import Call, MalformedCall, read_calls, write_calls

ASK = "Of course. Could you tell me who you are, and everything I should know about your request?"
TRANSFER = "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON."  # as the policies demand
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")  # to endpoints
EMPTY = "An answer is one or more tool calls, or a message to the customer: this one is neither."


class Agent(LocalAgent[None]):
    """The orchestrator's view of the agent: an answer that was put here before its turn."""

    def __init__(self) -> None:
        super().__init__(tools=[], domain_policy="")
        self.answer: AssistantMessage | None = None

    def get_init_state(self, message_history: list[Message] | None = None) -> None:
        return None

    def generate_next_message(self, message: Message, state: None) -> tuple[AssistantMessage, None]:
        assert self.answer is not None
        return self.answer, None


class TauEnv(TextEnv):
    """Conversations with customers, one after another."""

    def __init__(self, max_turns: int, speaker: Speaker | None = None) -> None:
        """
        Args:
            max_turns: answers of the agent after which an episode is truncated.
            speaker: plays the customers; None: they follow their script.
        """
        super().__init__(max_turns)
        self._speaker = speaker
        self._orchestrator: Orchestrator
        self._seen = ""  # digest of all observations so far, in order

    def _reset(self, task: TaskSpec) -> Observation:
        self._seen = ""
        self._orchestrator = orchestrator = self._begin(task.kind, _task(task))
        if orchestrator.done:
            raise EnvError(f"the customer of task {task.id} ended the conversation with its first message")
        shared = domain(task.kind)
        return replace(self._observe(*_heard(orchestrator)), rules=shared.rules, tools=shared.tools)

    def _step(self, action: str) -> StepResult:
        orchestrator = self._orchestrator
        info: dict[str, Any] = {}
        try:
            orchestrator.agent.answer = _message(action, self.turns)
        except MalformedCall as error:
            info["malformed"] = True
            observation = self._observe(str(error), "tool")
        else:
            _advance(orchestrator)
            observation = self._observe(*_heard(orchestrator))
        reason = orchestrator.termination_reason
        terminated = reason in (TerminationReason.USER_STOP, TerminationReason.TOO_MANY_ERRORS)
        truncated = not terminated and orchestrator.done
        reward = 0.0
        if terminated or truncated:
            verdict = _judge(orchestrator)
            reward, info = verdict.reward, info | dict(verdict.info)
        return StepResult(observation, observation.text, reward, terminated, truncated, reward == 1.0, info)

    def _finish(self) -> Verdict:
        return _judge(self._orchestrator)

    def reference(self, task: TaskSpec) -> list[str]:
        """tau2's gold actions, which it makes without regard to what was said; those of the customer's are
        asked for, and what has to be communicated is the last message."""
        criteria = _task(task).evaluation_criteria
        actions = criteria.actions or []
        transfer = any(action.name == "transfer_to_human_agents" for action in actions)
        told = [f"Here is what you wanted to know: {info}." for info in criteria.communicate_info or []]
        closing = TRANSFER if transfer else "All is done. Have a nice day!"
        return [
            ASK,
            *(
                f"Please use {action.get_func_format()} on your phone."
                if action.requestor == "user"
                else write_calls([Call(action.name, action.arguments)])
                for action in actions
            ),
            " ".join([*told, closing]),
        ]

    def close(self) -> None:
        if self._speaker:
            self._speaker.close()

    def _begin(self, kind: str, task: Task) -> Orchestrator:
        """A conversation in which the customer has said its first words."""
        world = make_environment(kind)
        tools = world.get_user_tools() if world.user_tools else None
        customer = SimulatedUser(task, tools, self._speaker) if self._speaker else ScriptedUser(task, tools)
        limits = {"max_steps": DEFAULT_MAX_STEPS, "max_errors": DEFAULT_MAX_ERRORS}
        orchestrator = Orchestrator(kind, Agent(), customer, world, task, **limits)
        orchestrator.initialize()
        _advance(orchestrator)
        return orchestrator

    def _observe(self, text: str, role: MessageRole) -> Observation:
        self._seen = hashlib.sha256(f"{self._seen} {role} {text}".encode()).hexdigest()[:16]
        return Observation(text, state_key=self._seen, role=role)


class TauFamily(EnvFamily):
    """tau2's tasks; its kinds are the domains, its training and evaluation tasks upstream's splits."""

    name = "taubench"
    action_format = "tools"
    turn_limit = 30
    KINDS = DOMAINS
    Settings = TauSettings

    def __init__(self, config: TauSettings, cache: Path) -> None:
        """
        Raises:
            ValueError: there is no such domain, or the simulated user cannot be reached or be in time.
        """
        super().__init__(config, cache)
        self._config = config
        self._simulated = config.user.source != "scripted"
        if self._simulated:
            _check_user(config)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self._config.user.api_key_env, *PROXIES) if self._simulated else ()

    def manifest(self) -> Manifest:
        return Manifest(
            train=self._draw("train", self._config.train_tasks),
            evaluation=self._draw("test", self._config.eval_tasks),
        )

    def panels(self) -> dict[str, Callable[[], tuple[TaskSpec, ...]]]:
        """`taubench/retail` and so on: the test split of each domain in upstream's order."""

        def test(kind: str) -> tuple[TaskSpec, ...]:
            return tuple(_spec(kind, "test", task) for task in domain(kind).splits["test"])

        return {**super().panels(), **{f"{self.name}/{kind}": partial(test, kind) for kind in DOMAINS}}

    def preload(self) -> None:
        for kind in self.kinds:
            domain(kind)
        if self._simulated:
            import hindsight.envs.taubench.endpoint  # noqa: F401 - its client is large, and a script needs none

    def make(self) -> TauEnv:
        if not self._simulated:
            return TauEnv(self._config.max_turns)
        from hindsight.envs.taubench.endpoint import UserEndpoint

        return TauEnv(self._config.max_turns, UserEndpoint(self._config.user))

    def _draw(self, split: str, count: int) -> tuple[TaskSpec, ...]:
        """Up to `count` tasks of the split, drawn by the seed, the domains taking turns."""
        queues = {kind: list(domain(kind).splits[split]) for kind in self.kinds}
        for kind, queue in queues.items():
            random.Random(f"{self._config.seed} {split} {kind}").shuffle(queue)
        chosen: list[TaskSpec] = []
        while len(chosen) < count and any(queues.values()):
            for kind, queue in queues.items():
                if queue and len(chosen) < count:
                    chosen.append(_spec(kind, split, queue.pop()))
        return tuple(chosen)


def _check_user(config: TauSettings) -> None:
    user = config.user
    if user.source == "endpoint" and not user.url:
        raise ValueError("env.user.source=endpoint needs env.user.url, the address of the endpoint")
    if PASSWORD_IN_ADDRESS.search(user.url):
        raise ValueError(
            "env.user.url holds a password, which logs would show: put it into the variable "
            "env.user.api_key_env"
        )
    longest = (user.retries + 1) * user.timeout
    for field in ("step_timeout", "reset_timeout"):
        if getattr(config, field) < longest:
            raise ValueError(
                f"env.{field}={getattr(config, field):g} is less than the {longest:g} s of the simulated "
                f"user (env.user: {user.retries + 1} tries of {user.timeout:g} s): raise it, or lower those"
            )


def _spec(kind: str, split: str, task_id: str) -> TaskSpec:
    text = domain(kind).tasks[task_id].model_dump_json()
    data = {"task": task_id, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return TaskSpec(f"{kind}/{task_id}", "taubench", kind, split, data)


def _task(spec: TaskSpec) -> Task:
    """Upstream's task. Raises EnvError where there is none."""
    if spec.kind not in DOMAINS or spec.data.get("task") not in domain(spec.kind).tasks:
        raise EnvError(f"task {spec.id} is no task of TauBench's {', '.join(DOMAINS)}")
    return domain(spec.kind).tasks[spec.data["task"]]


def _message(answer: str, turn: int) -> AssistantMessage:
    """The agent's answer as tau2 takes it: calls or words.

    Words next to calls are the agent's own: no customer hears them, so they do not count as communicated.

    Raises:
        MalformedCall: it is neither.
    """
    answer = answer.encode(errors="replace").decode()  # a lone surrogate is no character
    calls = [
        ToolCall(id=f"call_{turn}_{number}", name=call.name, arguments=call.arguments)
        for number, call in enumerate(read_calls(answer))
    ]
    if calls:
        return AssistantMessage(role="assistant", tool_calls=calls)
    if not answer.strip():
        raise MalformedCall(EMPTY)
    return AssistantMessage(role="assistant", content=answer)


def _advance(orchestrator: Orchestrator) -> None:
    """On to the agent's next turn or the end, under the limits that upstream's `run` holds, where it does."""
    while True:
        orchestrator.step()
        if orchestrator.to_role == Role.ENV:
            continue
        if not orchestrator.done and orchestrator.step_count >= orchestrator.max_steps:
            orchestrator.termination_reason = TerminationReason.MAX_STEPS
        if not orchestrator.done and orchestrator.num_errors >= orchestrator.max_errors:
            orchestrator.termination_reason = TerminationReason.TOO_MANY_ERRORS
        orchestrator.done = orchestrator.termination_reason is not None
        if orchestrator.done or orchestrator.to_role == Role.AGENT:
            return


def _heard(orchestrator: Orchestrator) -> tuple[str, MessageRole]:
    """What the agent hears, the results of several calls joined by lines, and from whom: "tool" or "user"."""
    message = orchestrator.message
    if orchestrator.to_role != Role.AGENT:
        return "", "user"  # cut off while the customer was at its own tools
    if isinstance(message, UserMessage):
        return message.content, "user"
    return "\n".join(result.content for result in results(message)), "tool"


def _evaluate(orchestrator: Orchestrator) -> RewardInfo:
    """tau2's verdict, as if the customer had ended the conversation: of one that was cut off upstream checks
    nothing, but what it lacked is worth knowing.

    Raises:
        EnvError: a tool gave a different answer when the conversation was replayed.
    """
    simulation = SimulationRun(
        id="",
        task_id=orchestrator.task.id,
        start_time="",
        end_time="",
        duration=0.0,
        termination_reason=TerminationReason.USER_STOP,
        messages=orchestrator.trajectory,
    )
    domain_name = registered(orchestrator.domain)
    try:
        return evaluate_simulation(simulation, orchestrator.task, EvaluationType.ALL, False, domain_name)
    except ValueError as error:
        raise EnvError(f"tau2 cannot evaluate its task {orchestrator.task.id}: {error}") from error


def _judge(orchestrator: Orchestrator) -> Verdict:
    """The evaluator's verdict on the conversation; if the customer did not end it, the reward is 0."""
    found, reason = _evaluate(orchestrator), orchestrator.termination_reason
    reward = found.reward if reason == TerminationReason.USER_STOP else 0.0
    info = {"ended": reason.value if reason else "cut", **_failures(found)}
    return Verdict(reward, reward == 1.0, info)


def _failures(verdict: RewardInfo) -> dict[str, list[str]]:
    """A sentence for each check that failed, by upstream's names of the checks.

    All are told; which of them the reward is made of is the task's choice (`reward_basis`).
    """
    kept = verdict.db_check is None or verdict.db_check.db_match
    return {
        "reward_basis": [basis.value for basis in verdict.reward_basis],
        "db_check": [] if kept else ["The database is not as the expected actions leave it."],
        "env_assertions": [
            check.env_assertion.message or f"{check.env_assertion.func_name} {check.env_assertion.arguments}"
            for check in verdict.env_assertions or []
            if not check.met
        ],
        "action_checks": [
            f"Not done by the {check.action.requestor}: {check.action.get_func_format()}"
            for check in verdict.action_checks or []
            if not check.action_match
        ],
        "communicate_checks": [
            check.justification for check in verdict.communicate_checks or [] if not check.met
        ],
    }
