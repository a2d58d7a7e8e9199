from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_toys import CHATML, INST, TEMPLATES, make_tokenizer

from hindsight.configs.schema import Prompt
from hindsight.envs.base import Observation
from hindsight.envs.tool_calls import Call, MalformedCall, read_calls, write_calls
from hindsight.rollout.action_format import FORMS
from hindsight.rollout.conversation import Conversation
from hindsight.rollout.render import Renderer

TEACHES = (  # shows tools and what they return as the templates of Hermes and Qwen do
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ 'Tools: <tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '</tools> Call them as <tool_call></tool_call>.<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOL = {"name": "cd", "description": "Change folder.", "parameters": {"type": "object", "properties": {}}}
START = Observation("Go to docs.", rules="You keep files.\nBe brief.", tools=(TOOL,))
CALL = write_calls([Call("cd", {"folder": "docs"})])


@pytest.mark.parametrize(
    ("form", "text", "action"),
    [
        ("tools", " Hello there. ", "Hello there."),
        ("tools", f"<think>a <tool_call> maybe</think>\n{CALL}\n", CALL),
        ("tools", "  ", None),
        ("tools", "<think>only a thought</think>", None),
        ("tools", '<tool_call>{"name": 3}</tool_call>', None),
        ("tools", '<tool_call>{"name": "cd"', None),
        ("code", "```python\nx = 1\n```", "x = 1"),
        ("code", "Sure:\n```\nx = 1\nprint(x)\n```\nDone.", "x = 1\nprint(x)"),
        ("code", "<think>```python\nno\n```</think>```python\nyes\n```", None),  # a fence opens a line
        ("code", "<think>```python\nno\n```</think>\n```python\nyes\n```", "yes"),
        ("code", "```python\n\n```", None),
        ("code", "```python\na\n```\n```python\nb\n```", None),
        ("code", "x = 1", None),
        ("search", "I see. <search> a film </search>", "<search> a film </search>"),
        ("search", "<think><search>no</search></think><answer>yes</answer>", "<answer>yes</answer>"),
        ("search", "<search>a</search><answer>b</answer>", None),
        ("search", "<search>a</search><search>b</search>", None),
        ("search", "<search> </search>", None),
        ("search", "<search>a</answer>", None),
        ("search", "</search><search>a", None),
    ],
)
def test_what_counts_as_the_action(form, text, action):
    span = FORMS[form].find(text)
    assert (text[span.start : span.end] if span else None) == action


@pytest.mark.parametrize("form", FORMS)
@given(action=st.text(min_size=1).filter(lambda text: text.strip()), garbage=st.text())
def test_written_answers_are_found_and_garbage_is_no_error(form, action, garbage):
    FORMS[form].find(garbage)
    for mark in ("<", "`", "\r"):
        action = action.replace(mark, " ")
    if action.strip():
        action = f"<answer>{action}</answer>" if form == "search" else action
        text = f"<think>hm</think>\n{FORMS[form].write(action)}"
        span = FORMS[form].find(text)
        assert span is not None and text[span.start : span.end] == action.strip()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x), max_leaves=5
)


@given(st.lists(st.builds(Call, st.text(), st.dictionaries(st.text(), values, max_size=3)), max_size=3))
def test_calls_are_read_as_written(calls):
    if any("tool_call>" in json.dumps([call.name, call.arguments]) for call in calls):
        return
    assert read_calls(write_calls(calls)) == tuple(calls)


@pytest.mark.parametrize("block", ["[1]", "{}", '{"name": "a", "arguments": []}', "[" * 100_000])
def test_what_is_no_call_is_said(block):
    with pytest.raises(MalformedCall, match=r"tool call|JSON object"):
        read_calls(f"<tool_call>{block}</tool_call>")


def chat(renderer: Renderer) -> str:
    conversation = Conversation(renderer)
    conversation.prompt(START)
    conversation.append_sampled(renderer.respond(CALL))
    _, context = conversation.prompt(Observation('{"folder": "docs"}', role="tool"))
    return renderer.decode(context)


def test_tools_go_through_a_template_that_teaches_them():
    """The growing chat is what the template makes of the same messages with their own roles."""
    tokenizer = make_tokenizer(TEACHES)
    renderer = Renderer(tokenizer, Prompt(think=False), 4096, "tools")
    messages = [
        {"role": "system", "content": f"{START.rules}\n\n{FORMS['tools'].request}"},
        {"role": "user", "content": START.text},
        {"role": "assistant", "content": CALL},
        {"role": "tool", "content": '{"folder": "docs"}'},
    ]
    schema = {"type": "function", "function": TOOL}
    assert chat(renderer) == tokenizer.apply_chat_template(
        messages, tools=[schema], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("preset", ["history", "window"])
def test_tools_are_described_to_a_model_whose_template_does_not(template, preset):
    renderer = Renderer(make_tokenizer(template), Prompt(think=False, preset=preset), 4096, "tools")
    text = renderer.decode(Conversation(renderer).prompt(START)[1])
    assert '"name": "cd"' in text and "<tool_call>" in text and START.rules in text
    if preset == "history":
        assert '<tool_response>\n{"folder": "docs"}\n</tool_response>' in chat(renderer)


@pytest.mark.parametrize("template", [CHATML, INST, TEACHES])
def test_each_episode_has_its_own_rules_and_tools(template):
    renderer = Renderer(make_tokenizer(template), Prompt(), 4096, "tools")
    other = Observation("Fly.", rules="You sell flights.", tools=({**TOOL, "name": "book"},))
    first, second = (renderer.decode(renderer.start(one)) for one in (START, other))
    assert '"cd"' in first and '"book"' not in first and "keep files" in first
    assert '"book"' in second and '"cd"' not in second and "sell flights" in second
