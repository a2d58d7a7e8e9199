"""TauBench episodes: gold actions on every task, upstream's own run, and whatever an agent may send."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slot_tools import run_async

from hindsight.envs.base import EnvError
from hindsight.envs.runtime.slot import Forkserver, Slot
from hindsight.envs.tasks import TaskSpec
from hindsight.envs.taubench.domains import DOMAINS, LONGEST, arithmetic, domain
from hindsight.envs.taubench.env import ASK, TRANSFER, TauFamily
from hindsight.envs.taubench.settings import TauSettings
from hindsight.envs.taubench.upstream import (
    STOP,
    AssistantMessage,
    EvaluationType,
    LocalAgent,
    Orchestrator,
    ToolCall,
    evaluate_simulation,
    registry,
)
from hindsight.envs.taubench.user import ScriptedUser
from hindsight.envs.tool_calls import Call, write_calls

ALL = 10_000
CLOSING = "All is done."
CHECKS = ("db_check", "env_assertions", "action_checks", "communicate_checks")


def family(tmp_path, **settings):
    sizes = {"train_tasks": ALL, "eval_tasks": ALL}
    return TauFamily(TauSettings(name="taubench", **(sizes | settings)), tmp_path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    manifest = family(tmp_path_factory.mktemp("cache")).manifest()
    return {task.id: task for task in (*manifest.train, *manifest.evaluation)}


@pytest.fixture
def env(tmp_path):
    return family(tmp_path, max_turns=30).make()


def play(env, task, actions):
    """The observations and the last result; every action has to be taken."""
    texts = [env.reset(task).text]
    for number, action in enumerate(actions, start=1):
        result = env.step(action)
        texts.append(result.observation.text)
        assert (result.terminated or result.truncated) == (number == len(actions)), (task.id, number, result)
    return texts, result


def call(name, **arguments):
    return write_calls([Call(name, arguments)])


def test_gold_actions_win(env, tasks):
    """Every sixth of the 278 tasks; `hindsight envs check taubench --tasks 1000` plays all of them."""
    assert [sum(task.kind == kind for task in tasks.values()) for kind in DOMAINS] == [114, 50, 114]
    for task in list(tasks.values())[::6]:
        actions = env.reference(task)
        _, result = play(env, task, actions)
        assert (result.reward, result.success, result.terminated) == (1.0, True, True), (task.id, result)
        assert result.info["ended"] == "user_stop"
        assert len(actions) <= TauFamily.turn_limit


class Puppet(LocalAgent):
    """Upstream's kind of agent, reading its answers from a list."""

    def __init__(self, answers):
        super().__init__(tools=[], domain_policy="")
        self.answers = iter(answers)

    def get_init_state(self, message_history=None):
        return None

    def generate_next_message(self, message, state):
        answer = next(self.answers)  # made a message only now: upstream sorts messages by their time
        if isinstance(answer, str):
            return AssistantMessage(role="assistant", content=answer), state
        calls = [ToolCall(id="x", name=answer["name"], arguments=answer["arguments"])]
        return AssistantMessage(role="assistant", tool_calls=calls), state


def upstream_run(task, answers):
    """What the agent hears and its reward, by upstream's unmodified domain, `run` and evaluator."""
    theirs = domain(task.kind).tasks[task.data["task"]]
    world = registry.get_env_constructor(task.kind)()
    customer = ScriptedUser(theirs, world.get_user_tools() if world.user_tools else None)
    run = Orchestrator(task.kind, Puppet(answers), customer, world, theirs, max_steps=200).run()
    verdict = evaluate_simulation(run, theirs, EvaluationType.ALL, False, task.kind)
    heard = [
        message.content
        for message in run.messages
        if (message.role == "user" and message.content)
        or (message.role == "tool" and message.requestor == "assistant")
    ]
    return heard, verdict.reward


@pytest.mark.parametrize(("kind", "left_out"), [(kind, out) for kind in DOMAINS for out in (False, True)])
def test_an_episode_equals_upstreams_run(env, tasks, kind, left_out):
    writes = ("exchange", "cancel", "modify", "return", "update", "book", "toggle", "enable", "refuel")
    chosen = [
        task
        for task in tasks.values()
        if task.kind == kind
        and (actions := domain(kind).tasks[task.data["task"]].evaluation_criteria.actions)
        and actions[-1].name.startswith(writes)
    ][:1]
    assert chosen
    for task in chosen:
        actions = env.reference(task)
        if left_out:
            del actions[-2]
        blocks = [re.search(r"\{.*\}", action, re.DOTALL) for action in actions]
        answers = [
            json.loads(block[0]) if block else action for action, block in zip(actions, blocks, strict=True)
        ]
        theirs, reward = upstream_run(task, answers)
        texts, result = play(env, task, actions)
        assert texts == theirs
        assert result.reward == reward == (0.0 if left_out else 1.0)


def test_what_was_missing_is_told(env, tasks):
    task = tasks["retail/0"]
    gold = env.reference(task)
    _, result = play(env, task, [ASK, CLOSING])
    assert (result.reward, result.success, result.terminated, result.truncated) == (0.0, False, True, False)
    assert result.info["db_check"] == ["The database is not as the expected actions leave it."]
    assert len(result.info["action_checks"]) == len(gold) - 2 == 5
    assert (
        result.info["action_checks"][1] == "Not done by the assistant: get_order_details(order_id=#W2378156)"
    )
    assert result.info["communicate_checks"] == result.info["env_assertions"] == []
    assert result.info["reward_basis"] == ["DB", "COMMUNICATE"]


def test_information_counts_only_where_the_customer_hears_it(env, tasks):
    spec, info = next(
        (task, criteria.communicate_info)
        for task in tasks.values()
        if task.kind == "retail"
        and (criteria := domain(task.kind).tasks[task.data["task"]].evaluation_criteria).communicate_info
    )
    gold = env.reference(spec)
    assert all(word in gold[-1] for word in info)
    _, silent = play(env, spec, [*gold[:-1], CLOSING])
    assert silent.reward == 0.0
    assert silent.info["communicate_checks"] == [f"Information '{word}' not communicated." for word in info]
    aside = f"{' '.join(info)} {call('calculate', expression='1')}"
    _, thought = play(env, spec, [*gold[:-1], aside, CLOSING])
    assert thought.info["communicate_checks"] == silent.info["communicate_checks"]


def test_the_first_observation_has_the_policy_and_the_tools(env, tasks):
    first = env.reset(tasks["retail/0"])
    assert first.role == "user"
    assert first.text.startswith("You received your order #W2378156")
    assert "You are a customer service agent" in first.rules
    assert "# Retail agent policy" in first.rules
    assert len(first.tools) == 15
    assert all(set(tool) == {"name", "description", "parameters"} for tool in first.tools)
    result = env.step(ASK)
    assert result.observation.text.startswith("You are Yusuf Rossi in zip code 19122.\nYou do not remember")
    assert result.observation.role == "user"
    assert (result.observation.rules, result.observation.tools) == ("", ())
    assert [len(domain(kind).tools) for kind in DOMAINS] == [15, 14, 13]


def test_tools_answer_and_mistakes_are_answered_by_upstream(env, tasks):
    env.reset(tasks["retail/0"])
    good = env.step(call("get_order_details", order_id="#W2378156"))
    assert json.loads(good.feedback)["order_id"] == "#W2378156"
    assert (good.observation.role, good.info, good.reward, good.terminated) == ("tool", {}, 0.0, False)
    assert env.step(call("fly")).feedback == "Error: Tool 'fly' not found."
    assert "missing 1 required positional argument" in env.step(call("get_order_details")).feedback
    assert "unexpected keyword" in env.step(call("calculate", expression="1", more=2)).feedback
    assert "multiple values" in env.step(call("calculate", tool_name="x", requestor="user")).feedback
    two = [Call("calculate", {"expression": "6 * 7"}), Call("get_order_details", {"order_id": "#W0"})]
    both = env.step(write_calls(two))
    assert both.feedback == "42.0\nError: Order not found"
    assert both.observation.role == "tool"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n\t",
        "<tool_call>",
        '<tool_call>{"name": "calculate"}',
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "calculate", "arguments": "1 + 1"}</tool_call>',
        '<tool_call>{"name": "refuel_data", "arguments": {"gb_amount": NaN}}</tool_call>',
        '<tool_call>{"name": "refuel_data", "arguments": {"gb_amount": 1e999}}</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        '<tool_call>{"name": "x", "arguments": {"a": ' + "[" * 40 + "]" * 40 + "}}</tool_call>",
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
    ],
)
def test_an_unreadable_answer_is_corrected_and_changes_nothing(env, tasks, answer):
    task = next(task for task in tasks.values() if task.kind == "telecom")
    gold = env.reference(task)
    env.reset(task)
    for action in gold[:-1]:
        assert not env.step(action).info
    result = env.step(answer)
    assert result.info == {"malformed": True}
    assert re.match('A tool call|An answer|The "arguments"', result.feedback)
    assert (result.observation.role, result.terminated, result.truncated) == ("tool", False, False)
    assert env.step(gold[-1]).success


def test_the_turn_limit_truncates_without_reward_and_a_step_after_the_end_is_an_error(tmp_path, tasks):
    task = tasks["retail/0"]
    env = family(tmp_path, max_turns=6).make()
    gold = env.reference(task)
    assert len(gold) == 7
    with pytest.raises(EnvError, match="reset"):
        env.step(ASK)
    _, result = play(env, task, gold[:-1])
    assert (result.reward, result.success, result.terminated, result.truncated) == (0.0, False, False, True)
    assert result.info["ended"] == "cut"
    assert all(result.info[check] == [] for check in CHECKS)
    with pytest.raises(EnvError, match="reset"):
        env.step(gold[-1])
    seven = family(tmp_path, max_turns=7).make()
    assert play(seven, task, gold)[1].success


def test_ten_failed_calls_end_the_conversation(env, tasks):
    _, result = play(env, tasks["retail/0"], [call("fly")] * 10)
    assert (result.reward, result.terminated, result.truncated) == (0.0, True, False)
    assert result.info["ended"] == "too_many_errors"


def test_a_transfer_ends_the_conversation(env, tasks):
    task = next(task for task in tasks.values() if env.reference(task)[-1] == TRANSFER)
    texts, result = play(env, task, [call("transfer_to_human_agents", summary="help"), TRANSFER])
    assert texts[1:] == ["Transfer successful", "###TRANSFER###"]
    assert result.terminated


def test_the_scripted_customer_uses_its_phone_as_it_is_told(env, tasks):
    trouble = "airplane_mode_on|user_abroad_roaming_enabled_off"
    task = tasks[f"telecom/[mobile_data_issue]{trouble}[PERSONA:None]"]
    first = env.reset(task)
    assert first.text.startswith("You mobile data is not working properly.")
    said = [
        "Please use toggle_airplane_mode(), then `toggle_roaming()`, then toggle_roaming() again.",
        "Now run_speed_test.",
        "Please grant_app_permission(permission='sms', app_name=messaging)",
        "grant_app_permission(messaging, storage, now)",
        "Can you tell me more?",
        "Is it good now?",
        "Good bye.",
    ]
    heard = [env.step(words).observation.text for words in said]
    assert heard[0].splitlines()[0].startswith("toggle_airplane_mode: Airplane Mode is now OFF")
    assert heard[0].count("toggle_roaming: ") == 1
    assert "Excellent" in heard[1]
    assert "sms" in heard[2] and "Error" not in heard[2]
    assert heard[3].startswith("grant_app_permission: Error: ")
    assert heard[4].startswith("You are John Smith with phone number 555-123-2002.")
    assert heard[5:] == ["Yes, please.", STOP]


def test_state_keys_follow_what_was_seen(env, tasks):
    task = tasks["retail/0"]

    def keys(*actions):
        return [env.reset(task).state_key, *(env.step(action).observation.state_key for action in actions)]

    look, other = call("get_order_details", order_id="#W2378156"), call("list_all_product_types")
    assert keys(look, other) == keys(look, other)
    assert keys(look, other)[2] != keys(other, look)[2]
    assert keys("Who are you?", look) == keys("Tell me more, please.", look)
    assert len({*keys(look, look), *keys(other)}) == 4


def test_a_task_that_is_not_there_is_an_error(env):
    for task in (
        TaskSpec("x", "taubench", "retail", "train", {"task": "lost"}),
        TaskSpec("x", "taubench", "hotel", "train", {"task": "0"}),
        TaskSpec("x", "taubench", "retail", "train"),
    ):
        with pytest.raises(EnvError, match="no task of TauBench"):
            env.reset(task)
        with pytest.raises(EnvError, match="reset"):
            env.step(ASK)


def test_a_new_bill_does_not_spoil_the_evaluation(env, tasks):
    task = next(task for task in tasks.values() if "refuel_data" in " ".join(env.reference(task)))
    look = call("get_customer_by_phone", phone_number="555-123-1002")
    refuel = call("refuel_data", customer_id="C1002", line_id="L1004", gb_amount=1)
    texts, result = play(env, task, [ASK, look, refuel, refuel, look, CLOSING])
    before, after = (json.loads(texts[number])["bill_ids"] for number in (2, 5))
    assert (before, len(after), after[:2]) == (["B1004", "B1005"], 3, before)
    assert result.terminated
    assert texts == play(env, task, [ASK, look, refuel, refuel, look, CLOSING])[0]


def test_arithmetic_is_bounded(env, tasks):
    assert arithmetic("2 ** 10 // 3") == "341.0"
    assert arithmetic("2 ** -1") == "0.5"
    env.reset(tasks["retail/0"])
    start = time.monotonic()
    deep = ("1+" * 10_000 + "1", "(" * LONGEST, "-" * LONGEST)
    for expression in ("9**9**9**9", "(9**99)**99**99", "()", "...", *deep):
        feedback = env.step(call("calculate", expression=expression)).feedback
        assert feedback.startswith("Error: ")
    assert time.monotonic() - start < 5
    assert arithmetic("1" + "+1" * 200) == "201.0"


KNOWN = ["C1001", "L1002", "#W2378156", "yusuf_rossi_9620", "555-123-2002", "credit_card_9513926", "EHGLP3"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(KNOWN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def blocks(draw, kind):
    """Calls of the domain's tools, and of none, with right, wrong and missing arguments."""
    tools = {tool["name"]: list(tool["parameters"]["properties"]) for tool in domain(kind).tools}
    name = draw(st.sampled_from(sorted(tools)) | st.text(max_size=8))
    fields = tools.get(name, [])
    right = st.fixed_dictionaries(dict.fromkeys(fields, VALUES))
    arguments = draw(right | st.dictionaries(st.sampled_from([*fields, "self", "x"]), VALUES))
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


PHONE = (
    r"\A(toggle_data|grant_app_permission|set_apn_settings|make_payment|reboot_device)\([a-z=,'\"]{0,9}\)\Z"
)


@pytest.mark.parametrize("kind", DOMAINS)
def test_whatever_an_agent_sends_is_answered_and_evaluated(env, tasks, kind):
    task = next(task for task in tasks.values() if task.kind == kind)
    several = st.lists(blocks(kind), max_size=4).map(" and ".join)
    answers = blocks(kind) | several | st.text() | st.from_regex(PHONE)

    @settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
    @given(st.lists(answers, min_size=1, max_size=28))
    def run(sent):
        env.reset(task)
        for answer in sent:
            result = env.step(answer)
            assert isinstance(result.feedback, str)
            if result.terminated:
                break
        else:
            for closing in ("Is that so?", CLOSING):
                result = env.step(closing)
                if result.terminated:
                    break
        assert result.terminated and result.reward in (0.0, 1.0)
        json.dumps(dict(result.info))

    run()


@run_async
async def test_a_slot_plays_what_its_server_loaded(tmp_path_factory):
    config = TauSettings(name="taubench", kinds=["telecom"])
    server = Forkserver(TauFamily(config, tmp_path_factory.mktemp("cache")))
    try:
        slot = await Slot.start(server, 50)
        task = TauFamily(config, tmp_path_factory.mktemp("cache")).manifest().train[0]
        demonstration = await slot.call("demonstrate", task, 0, 0.0, deadline=50)
        assert demonstration.success
        assert demonstration.steps[-1].result.reward == 1.0
    finally:
        server.close()
