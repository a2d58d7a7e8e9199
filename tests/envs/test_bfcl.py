"""BFCL episodes: the shipped solutions, upstream's limits, what an agent is shown, and what it may send."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code import long_context
from hypothesis import given, settings
from hypothesis import strategies as st

from hindsight.configs.schema import Env
from hindsight.envs.base import EnvError
from hindsight.envs.bfcl.backends import Backends, value_differences
from hindsight.envs.bfcl.data import KINDS, entries
from hindsight.envs.bfcl.env import GOODBYE, MORE_TOOLS, BfclFamily
from hindsight.envs.tasks import TaskSpec
from hindsight.envs.tool_calls import Call, read_calls, write_calls

BASE = "multi_turn_base_0"  # cd, mkdir, mv | cd, grep | sort | cd, mv, cd, diff


def family(**settings) -> BfclFamily:
    return BfclFamily(Env(name="bfcl", **{"max_turns": 20} | settings), Path("unused"))


@pytest.fixture(scope="module")
def env():
    return family().make()


def say(name: str, **arguments) -> str:
    return write_calls([Call(name, arguments)])


def play(env, task: TaskSpec, answers: list[str]):
    env.reset(task)
    for answer in answers:
        result = env.step(answer)
    return result


def test_every_shipped_solution_wins_within_twenty_answers(env):
    won = Counter()
    for entry in entries().values():
        answers = env.reference(entry.task)
        env.reset(entry.task)
        results = [env.step(answer) for answer in answers]
        last = results.pop()
        assert not any(result.terminated or result.truncated or result.reward for result in results)
        assert (last.reward, last.success, last.terminated, last.truncated) == (1.0, True, True, False)
        assert last.info == {"turn": len(entry.gold) - 1, "errors": []}
        won[entry.kind] += 1
    assert won == dict.fromkeys(KINDS, 200)


def test_without_its_first_turn_that_has_calls_no_solution_wins(env):
    lost, idle = Counter(), Counter()
    for entry in entries().values():
        first = next(turn for turn, calls in enumerate(entry.gold) if calls)
        turns = [write_calls(calls) if turn != first else "" for turn, calls in enumerate(entry.gold)]
        result = play(
            env, entry.task, [answer for calls in turns for answer in filter(None, (calls, "Done."))]
        )
        error = result.info["errors"][0]
        assert (error["turn"], error["error_type"]) == (first, "multi_turn:empty_turn_model_response")
        assert len(error["missing_items"]) == min(20, len(entry.gold[first]))
        lost[entry.kind] += result.terminated and not result.success and result.reward == 0.0
        idle[entry.kind] += first > 0
    assert lost == dict.fromkeys(KINDS, 200)
    # Where the very first turn has no call to drop, dropping it changes nothing.
    assert idle == {"base": 0, "long_context": 0, "miss_func": 94, "miss_param": 81}


def test_the_errors_of_an_episode_say_turn_and_what_was_missing(env):
    answers = env.reference(entries()[BASE].task)
    assert answers[0] == say("cd", folder="document") and answers[3] == "That is done."
    wrong = [*answers[:2], say("touch", file_name="notes"), *answers[2:]]
    result = play(env, entries()[BASE].task, wrong)
    [error] = result.info["errors"]
    assert (error["turn"], error["error_type"]) == (0, "multi_turn:instance_state_mismatch")
    assert error["differences"] == [
        {"path": "root/contents/document/contents/notes", "agent": "a File", "expected": "nothing"}
    ]
    unread = [answer for answer in answers if "grep" not in answer]
    [error] = play(env, entries()[BASE].task, unread).info["errors"]
    assert (error["turn"], error["error_type"]) == (1, "multi_turn:execution_response_mismatch")
    assert len(error["missing_items"]) == 1 and "budget analysis" in error["missing_items"][0]
    withheld = entries()["multi_turn_miss_func_0"]
    answers = env.reference(withheld.task)
    assert withheld.gold[2] == () and answers[7] == "I cannot do that yet: a tool or a detail is missing."
    result = play(env, withheld.task, [*answers[:7], say("ls"), *answers[7:]])
    [error] = result.info["errors"]
    assert (error["turn"], error["error_type"]) == (2, "multi_turn:irrelevance_error:decoder_success")
    assert error["calls"] == ["ls({})"]


def test_results_come_in_order_and_errors_are_upstreams(env):
    first = env.reset(entries()[BASE].task)
    assert (first.role, first.text) == ("user", entries()[BASE].messages[0])
    calls = [
        Call("cd", {"folder": "document"}),
        Call("cd", {"folder": "nope"}),
        Call("cd"),
        Call("cd", {"folder": 1}),
        Call("fly"),
        Call("__init__"),
        Call("pwd", {"deep": True}),
    ]
    result = env.step("I look around.\n" + write_calls(calls))
    assert result.observation.role == "tool" and result.feedback == result.observation.text
    assert result.feedback.splitlines() == [
        '{"current_working_directory": "document"}',
        '{"error": "cd: \'nope\': No such file or directory"}',
        "Error during execution: GorillaFileSystem.cd() missing 1 required positional argument: 'folder'",
        "Error during execution: 'int' object has no attribute 'rstrip'",
        "Error during execution: name 'fly' is not defined",
        "Error during execution: name '__init__' is not defined",
        "Error during execution: GorillaFileSystem.pwd() got an unexpected keyword argument 'deep'",
    ]
    result = env.step("Now the next, please.")
    assert (result.observation.role, result.feedback) == ("user", entries()[BASE].messages[1])
    assert result.observation.tools == () and not result.terminated


def test_an_unreadable_call_is_corrected_and_costs_a_step(env):
    env.reset(entries()[BASE].task)
    result = env.step('<tool_call>{"name": "cd"')
    assert "error" in json.loads(result.feedback) and result.observation.role == "tool"
    assert env.step("Done.").feedback == entries()[BASE].messages[1]


@pytest.mark.parametrize("answer", [say("pwd"), "<tool_call>"])
def test_the_step_after_the_twentieth_of_a_turn_ends_the_episode(answer):
    env = family(max_turns=100).make()
    env.reset(entries()[BASE].task)
    results = [env.step(answer) for _ in range(21)]
    assert [result.terminated for result in results] == [False] * 20 + [True]
    last = results[-1]
    assert (last.success, last.truncated) == (False, False)
    assert last.info["errors"][0]["error_type"] == "multi_turn:force_terminated"
    with pytest.raises(EnvError, match="reset"):
        env.step(answer)


def test_max_turns_counts_every_answer():
    env = family(max_turns=4).make()
    answers = env.reference(entries()[BASE].task)
    assert answers[0].count("<tool_call>") == 3  # one by one, they would be over the limit
    env.reset(entries()[BASE].task)
    results = [env.step(answer) for answer in answers[:4]]
    assert [result.truncated for result in results] == [False, False, False, True]
    assert not results[-1].terminated and results[-1].info["errors"][0]["turn"] == 2
    with pytest.raises(EnvError, match="reset"):
        env.step("")
    assert play(family(max_turns=8).make(), entries()[BASE].task, answers).feedback == GOODBYE


def test_silence_reaches_the_end(env):
    result = play(env, entries()[BASE].task, [""] * 4)
    assert result.terminated and result.info["errors"][0]["turn"] == 0


def test_tools_are_json_schemas_and_withheld_ones_come_at_their_turn(env):
    for entry in entries().values():
        names = [tool["name"] for tool in entry.tools]
        later = [tool["name"] for tools in entry.revealed.values() for tool in tools]
        assert len({*names, *later}) == len(names) + len(later)
        assert bool(later) == (entry.kind == "miss_func")
        offered = {tool["name"]: tool["parameters"] for tools in entry.revealed.values() for tool in tools}
        offered |= {tool["name"]: tool["parameters"] for tool in entry.tools}
        for call in (call for turn in entry.gold for call in turn):
            assert call.arguments.keys() <= offered[call.name]["properties"].keys()
            assert {*offered[call.name]["required"]} <= call.arguments.keys()
            assert read_calls(write_calls([call])) == (call,)
    tools = {tool["name"]: tool for entry in entries().values() for tool in entry.tools}
    for tool in tools.values():
        assert tool.keys() == {"name", "description", "parameters"}
        jsonschema.Draft202012Validator.check_schema(tool["parameters"])
    assert tools["mean"]["parameters"]["properties"]["numbers"]["items"]["type"] == "number"
    first = env.reset(entries()["multi_turn_miss_func_0"].task)
    assert not {"sort", "cp"} & {tool["name"] for tool in first.tools}  # withheld, excluded
    for _ in range(3):
        text = env.step("").feedback
    prompt, schema = text.splitlines()
    assert prompt == MORE_TOOLS and json.loads(schema) == tools["sort"]


def test_equal_states_have_equal_keys_and_hidden_differences_show(env):
    task = entries()[BASE].task
    start = env.reset(task).state_key
    assert env.step(say("pwd")).observation.state_key == start
    assert env.step(say("cd", folder="document")).observation.state_key != start  # a private attribute
    assert env.step(say("cd", folder="..")).observation.state_key == start
    assert env.step("").observation.state_key != start  # the next turn
    env.reset(task)
    ways = [
        [say("mkdir", dir_name="a"), say("touch", file_name="b")],
        [write_calls([Call("mkdir", {"dir_name": "a"}), Call("touch", {"file_name": "b"})])],
        [say("touch", file_name="b"), say("mkdir", dir_name="a")],
    ]
    keys = [play(env, task, way).observation.state_key for way in ways]
    assert keys[0] == keys[1] != keys[2]  # `ls` shows the order


def test_rollouts_of_one_task_do_not_touch_each_other_nor_upstreams_modules():
    task = entries()["multi_turn_long_context_160"].task
    names = [name for name in vars(long_context) if name.isupper()]
    constants = {name: copy.deepcopy(getattr(long_context, name)) for name in names}
    before = copy.deepcopy(entries()[task.id])
    modules = set(vars(multi_turn_utils))
    one, other = family().make(), family().make()
    first = one.reset(task)
    assert other.reset(task) == first
    answers = one.reference(task)
    for answer in answers:
        for spoilt in range(2):  # steps that the other rollout must not feel
            one.step(say("authenticate_travel", client_id=f"{spoilt}"))
        one.reset(task)
        one.step(answer)
        result = other.step(answer)
    assert result.success
    for holder in list(one._backends.instances.values()):
        if hasattr(holder, "credit_card_list"):
            for card in holder.credit_card_list.values():
                card["balance"] = -1
    assert {name: getattr(long_context, name) for name in names} == constants
    assert entries()[task.id] == before and set(vars(multi_turn_utils)) == modules
    assert one.reset(task) == first


@given(st.text() | st.text().map(lambda text: f"<tool_call>{text}</tool_call>"))
@settings(max_examples=60)
def test_any_text_is_answered(env, text):
    env.reset(entries()["multi_turn_base_100"].task)
    result = env.step(text)
    assert result.reward == 0.0 and isinstance(result.feedback, str) and result.feedback
    result.feedback.encode()
    json.dumps(result.info)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**4200]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
TOOLS = {tool["name"]: (entry, tool) for entry in entries().values() for tool in entry.tools}


@given(st.data())
@settings(max_examples=150)
def test_any_arguments_are_answered(env, data):
    entry, tool = TOOLS[data.draw(st.sampled_from(sorted(TOOLS)))]
    env.reset(entry.task)
    for _ in range(2):
        names = st.sampled_from([*tool["parameters"]["properties"], "self"])
        arguments = data.draw(st.dictionaries(names, JSON, max_size=6))
        result = env.step(write_calls([Call(tool["name"], arguments)]))
        result.feedback.encode()
        assert result.observation.role == "tool" and result.observation.state_key
    while not result.terminated:
        result = env.step("")
    json.dumps(result.info)


@pytest.mark.parametrize(
    "call",
    [
        Call("power", {"base": 10, "exponent": 10**9}),
        Call("power", {"base": -2, "exponent": 10**4000}),
        Call("square_root", {"number": 2, "precision": 10**15}),
        Call("logarithm", {"value": 2, "base": 10, "precision": "1000000000"}),
        Call("logarithm", {"value": 2, "base": 10, "precision": 1e12}),
        Call("round_number", {"number": 5, "decimal_places": -(10**9)}),
    ],
)
def test_endless_arithmetic_is_refused(call):
    entry = next(entry for entry in entries().values() if "MathAPI" in entry.classes)
    assert "digits are not computed" in Backends(entry).call(call)


def test_ordinary_arithmetic_is_not_refused():
    backends = Backends(next(entry for entry in entries().values() if "MathAPI" in entry.classes))
    assert backends.call(Call("power", {"base": 2, "exponent": 10})) == '{"result": 1024}'
    assert backends.call(Call("power", {"base": 2, "exponent": -1})) == '{"result": 0.5}'
    assert backends.call(Call("square_root", {"number": 4, "precision": 5})) == "{'result': Decimal('2')}"


def test_folders_may_be_deep_or_hold_themselves(env):
    deep = [Call("mkdir", {"dir_name": "a"}), Call("cd", {"folder": "a"})] * 2000
    env.reset(entries()[BASE].task)
    env.step(write_calls(deep))
    assert "maximum recursion depth" in env.step(say("find", path="/")).feedback
    env.reset(entries()[BASE].task)
    loop = [Call("mkdir", {"dir_name": "a"}), Call("cp", {"source": "a", "destination": "a"})]
    env.step(write_calls(loop))
    for _ in range(4):
        result = env.step("")
    [error] = [error for error in result.info["errors"] if "differences" in error]
    assert error["differences"]


def test_differences_name_the_smallest_pieces():
    found = {"a": [1, 2], "b": {"x": {"y": 1}}, "same": 3}
    expected = {"a": [1, 5], "b": {}, "c": "new", "same": 3}
    assert list(value_differences(found, expected)) == [
        ("a/1", "2", "5"),
        ("b/x", "a dict", "nothing"),
        ("c", "nothing", "'new'"),
    ]


def test_splits_share_no_scenario_and_the_kinds_take_turns():
    manifest = family(train_tasks=600, eval_tasks=120).manifest()
    assert (len(manifest.train), len(manifest.evaluation)) == (600, 120)
    scenarios = [
        {entries()[task.id].scenario for task in split} for split in (manifest.train, manifest.evaluation)
    ]
    assert not scenarios[0] & scenarios[1] and len(scenarios[1]) == 30
    assert len({task.id for task in manifest.train}) == 600
    assert Counter(task.kind for task in manifest.evaluation) == dict.fromkeys(KINDS, 30)
    spread = Counter(task.kind for task in manifest.train)
    assert max(spread.values()) - min(spread.values()) <= 4
    assert manifest.digest == family(train_tasks=600, eval_tasks=120).manifest().digest
    assert manifest.digest != family(train_tasks=600, eval_tasks=120, seed=1).manifest().digest
    assert {task.split for task in manifest.train} == {"train"}
    few = family(train_tasks=8, eval_tasks=6).manifest()
    assert Counter(task.kind for task in few.train) == dict.fromkeys(KINDS, 2)
    assert len({entries()[task.id].scenario for task in few.train}) == 8


def test_one_kind_or_too_many_tasks():
    manifest = family(train_tasks=600, eval_tasks=50, kinds=["miss_param"]).manifest()
    assert (len(manifest.train), len(manifest.evaluation)) == (150, 50)
    assert {task.kind for task in (*manifest.train, *manifest.evaluation)} == {"miss_param"}
    manifest = family(train_tasks=10_000, eval_tasks=10_000).manifest()
    assert (len(manifest.train), len(manifest.evaluation)) == (4, 796)
    with pytest.raises(ValueError, match=r"'nope'.*base, miss_func, miss_param, long_context"):
        family(kinds=["nope"])


def test_a_task_of_other_data_is_an_error_and_spares_the_next(env):
    task = entries()[BASE].task
    for other in (TaskSpec("lost", "bfcl", "base", "train"), TaskSpec(task.id, "bfcl", "base", "train")):
        with pytest.raises(EnvError, match="bfcl-eval"):
            env.reset(other)
    with pytest.raises(EnvError, match="reset"):
        env.step("")
    assert env.demonstrate(task, 0, 0.0).success
